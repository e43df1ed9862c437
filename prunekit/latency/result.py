"""What was measured, and ratios that refuse to compare what was not measured alike."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from prunekit.errors import MeasurementError
from prunekit.evaluation.cells import Amount, amount_label
from prunekit.evaluation.experiment import DENSE
from prunekit.latency.roofline import Bound, Peaks

__all__ = ["Benchmark", "Ratio", "Row", "Skipped", "paired"]

RESAMPLES = 2000


@dataclass(frozen=True)
class Ratio:
    """Dense time over a method's time.

    Attributes:
        median: of the ratios of each round; above 1 is faster than dense.
        low, high: 95 % percentile bootstrap interval of the median, over rounds.
        pairs: rounds.
    """

    median: float
    low: float
    high: float
    pairs: int


def paired(above: Sequence[float], below: Sequence[float], seed: int = 0) -> Ratio:
    """The ratio of two ways that were measured in the same rounds.

    Raises:
        MeasurementError: the rounds differ in number.
    """
    if len(above) != len(below) or not above:
        raise MeasurementError(f"Times of {len(above)} and {len(below)} rounds cannot be paired.")
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    resample = random.Random(seed)
    medians = sorted(median(resample.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    cut = RESAMPLES // 40  # 2.5 % at each end
    return Ratio(median(ratios), medians[cut - 1], medians[-cut], len(ratios))


@dataclass(frozen=True)
class Row:
    """One way at one batch size.

    Attributes:
        name, budget: of the method; `dense` and None without pruning.
        batch: samples.
        attention: implementation in the language model and in the encoder, as they ran.
        device, dtype: where and in what it ran.
        seconds: of every round, by part, see `prunekit.latency.ways.PARTS`; `decode` per token.
        scorer_seconds: that policies take in a prefill, see `prunekit.latency.profiled`; None for dense.
        peak_memory: bytes of tensors that a prefill holds at most, its KV cache included, weights and inputs not.
        decode_tokens: tokens that `generate` decodes.
        visual_tokens: visual tokens of one sample that enter each decoder layer.
        bounds: roofline by part; empty where it was left out.
    """

    name: str
    budget: Amount
    batch: int
    attention: tuple[str, str]
    device: str
    dtype: str
    seconds: dict[str, list[float]]
    scorer_seconds: float | None
    peak_memory: int
    decode_tokens: int
    visual_tokens: tuple[int, ...] = ()
    bounds: dict[str, Bound] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.name} {amount_label(self.budget)}".strip()

    def milliseconds(self, part: str) -> float | None:
        """Median over rounds; None where the part is not known."""
        return 1000 * median(self.seconds[part]) if part in self.seconds else None

    @property
    def throughput(self) -> float:
        """Samples per second, from prompt to last token."""
        return self.batch / median(self.seconds["generate"])


@dataclass(frozen=True)
class Skipped:
    """A method that was asked for and not measured.

    Attributes:
        name, budget: of the method, as in `Row`.
        reason: why it cannot reach the budget, or cannot work on this model.
    """

    name: str
    budget: Amount
    reason: str


@dataclass(frozen=True)
class Benchmark:
    """All rows of a run.

    Attributes:
        rows: by batch size, the dense model first.
        setup: model, prompt, protocol, versions and hardware.
        peaks: of the device; None where the roofline was left out.
        order: for each batch size and round which way was measured when.
        skipped: what was asked for and could not be measured.
    """

    rows: list[Row]
    setup: dict[str, Any] = field(default_factory=dict)
    peaks: Peaks | None = None
    order: dict[int, list[list[str]]] = field(default_factory=dict)
    skipped: tuple[Skipped, ...] = ()

    def dense(self, row: Row) -> Row:
        """The dense row that a row may be compared with.

        Raises:
            MeasurementError: there is none at this batch size, or only under another attention, device or type.
        """
        found = [each for each in self.rows if each.name == DENSE and each.batch == row.batch]
        if not found:
            raise MeasurementError(
                f"{row.label} at batch size {row.batch}: no speed-up without the dense model, which was not measured at"
                " that batch size in the same run."
            )
        for what in ("attention", "device", "dtype"):
            own, theirs = getattr(row, what), getattr(found[0], what)
            if own != theirs:
                raise MeasurementError(
                    f"{row.label} ran with {what} {own}, the dense model with {theirs}: a ratio would mix pruning with"
                    f" the change of {what}. Measure both alike, in one run."
                )
        return found[0]

    def speedup(self, row: Row, part: str = "prefill") -> Ratio:
        """Dense time over a row's, round by round.

        Raises:
            MeasurementError: there is no dense row that was measured alike, or the part was not measured.
        """
        dense = self.dense(row)
        if part not in row.seconds or part not in dense.seconds:
            raise MeasurementError(f"part {part!r} was not measured; measured are {', '.join(row.seconds)}.")
        return paired(dense.seconds[part], row.seconds[part])

    def flops_speedup(self, row: Row, part: str = "prefill") -> float | None:
        """Dense operations over a row's; None where they were not counted."""
        dense = self.dense(row)
        if part not in row.bounds or part not in dense.bounds:
            return None
        above, below = dense.bounds[part].flops, row.bounds[part].flops
        return above / below if above and below else None

    def expected_speedup(self, row: Row) -> float | None:
        """The prefill's speed-up if every part ran at the rate of operations that it has in the dense model.

        Dense times of vision encoder, language model and rest, each scaled by the part's operations. None where they
        were not counted.
        """
        dense = self.dense(row)
        parts: list[str] = [part for part in ("vision", "language") if part in dense.seconds and part in dense.bounds]
        ratios = {part: self.flops_speedup(row, part) for part in [*parts, "rest"]}
        if not parts or not all(ratios.values()):
            return None
        taken = {part: median(dense.seconds[part]) for part in parts}
        whole = median(dense.seconds["prefill"])
        taken["rest"] = max(0.0, whole - sum(taken.values()))
        return whole / sum(seconds / (ratios[part] or 1) for part, seconds in taken.items())

    def to_dict(self) -> dict[str, Any]:
        """Everything for JSON, with medians and ratios.

        Raises:
            MeasurementError: rows lack their dense baseline.
        """
        return {
            "setup": self.setup,
            "peaks": None if self.peaks is None else asdict(self.peaks),
            "rows": [self._row(row) for row in self.rows],
            "order": {str(batch): names for batch, names in self.order.items()},
            "skipped": [asdict(each) for each in self.skipped],
        }

    def _row(self, row: Row) -> dict[str, Any]:
        found = asdict(row)
        found["attention"] = dict(zip(("language", "vision"), row.attention, strict=True))
        for part, bound in found["bounds"].items():
            measured = row.milliseconds(part)
            bound["share_of_measured"] = None if measured is None else 1000 * bound["seconds"] / measured
        found["median_ms"] = {part: row.milliseconds(part) for part in row.seconds}
        found["samples_per_second"] = row.throughput
        found["tokens_per_second"] = row.throughput * row.decode_tokens
        if row.name != DENSE:
            found["speedup"] = {part: asdict(self.speedup(row, part)) for part in row.seconds}
            found["flops_speedup"] = {part: self.flops_speedup(row, part) for part in row.bounds}
            found["expected_prefill_speedup"] = self.expected_speedup(row)
        return found
