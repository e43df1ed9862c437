"""Results as data: one `MethodResult` per method and budget, together a `Result`, written as result.json."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from prunekit.budget import Budget
from prunekit.evaluation.cells import Amount, Cell
from prunekit.evaluation.experiment import DENSE
from prunekit.evaluation.predictions import Prediction
from prunekit.evaluation.statistics import Comparison, Resampler

__all__ = ["MethodResult", "Result", "summarise"]


@dataclass(frozen=True)
class MethodResult:
    """One row of the results. Where the budget is not reachable, `reason` says why and the numbers are None.

    Attributes:
        name: of the method.
        budget: as the experiment writes it; None for the dense model and for methods that run as configured.
        stages: site, policy and keep of each stage.
        accuracy: share of right answers.
        interval: 95 % interval, from a bootstrap over groups of samples.
        questions: number of samples.
        average_visual_tokens: visual tokens per decoder layer, averaged over layers and samples, as traced.
        final_visual_tokens: visual tokens after the last stage, averaged over samples, as traced.
        macs: multiply-adds of one prefill at batch size 1, by part.
        flops: twice the sum of `macs`.
        prefill_ms: median time of one prefill at batch size 1.
        families: accuracy by family of questions.
        family_intervals: their intervals.
        versus_dense: paired comparison with the dense model.
        achieved: what the stages cost by every measure that a budget can be given in, from shapes: `tokens` and `ratio`
            after the last stage, `average` and `average_share` per decoder layer, `flops` and `kv` as shares of the
            dense language model, `kv_bytes`. Empty where the data decide how many tokens stay.
    """

    name: str
    budget: Amount
    stages: list[dict[str, Any]] = field(default_factory=list)
    accuracy: float | None = None
    interval: tuple[float, float] | None = None
    questions: int = 0
    average_visual_tokens: float | None = None
    final_visual_tokens: float | None = None
    macs: dict[str, int] | None = None
    flops: int | None = None
    prefill_ms: float | None = None
    families: dict[str, float] = field(default_factory=dict)
    family_intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    versus_dense: Comparison | None = None
    reason: str | None = None
    achieved: dict[str, float] = field(default_factory=dict)

    @property
    def total_macs(self) -> int | None:
        """All multiply-adds of one prefill."""
        return None if self.macs is None else sum(self.macs.values())


@dataclass(frozen=True)
class Result:
    """Everything a run found out, and what is needed to repeat it."""

    experiment: dict[str, Any]
    provenance: dict[str, Any]
    model: dict[str, Any]
    task: dict[str, Any]
    methods: list[MethodResult]
    notes: dict[str, str] = field(default_factory=dict)
    schema: int = 1

    def write(self, path: Path) -> None:
        """Write as JSON, all at once."""
        new = path.with_name(path.name + ".new")
        new.write_text(json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(new, path)

    @classmethod
    def read(cls, path: Path) -> Result:
        """Read what `write` wrote."""
        data = json.loads(path.read_text(encoding="utf-8"))
        methods = [_method(row) for row in data.pop("methods")]
        return cls(methods=methods, **data)

    def __getitem__(self, key: tuple[str, Amount | Budget]) -> MethodResult:
        """The row of a method and a budget."""
        name, budget = key
        wanted = str(budget) if isinstance(budget, Budget) else budget
        for row in self.methods:
            if (row.name, row.budget) == (name, wanted):
                return row
        raise KeyError(key)


def _method(row: dict[str, Any]) -> MethodResult:
    versus = row.pop("versus_dense")
    if versus is not None:
        versus = Comparison(**{**versus, "interval": tuple(versus["interval"])})
    interval = None if row["interval"] is None else tuple(row.pop("interval"))
    families = {name: tuple(pair) for name, pair in row.pop("family_intervals").items()}
    return MethodResult(**{**row, "interval": interval, "family_intervals": families}, versus_dense=versus)


def average_tokens(kept: Mapping[str, int], visual: int, depth: int) -> float:
    """Visual tokens entering each decoder layer, averaged over layers, from the tokens that each stage left."""
    alive, layers = visual, [visual] * depth
    for site, count in kept.items():  # in the order of the forward pass
        part, _, index = site.partition(".")
        first = int(index) if part == "decoder" else 0
        alive = count
        layers[first:] = [alive] * (depth - first)
    return sum(layers) / depth


def summarise(cells: Sequence[Cell], predictions: Sequence[Prediction], depth: int, seed: int) -> list[MethodResult]:
    """Rows without costs, from the predictions of all cells on the same samples.

    Args:
        cells: the rows, the dense model among them.
        predictions: of all reachable cells.
        depth: decoder layers of the model.
        seed: of the bootstrap.
    """
    by_cell: dict[tuple[str, Amount], list[Prediction]] = {}
    for prediction in sorted(predictions, key=lambda p: p.index):
        by_cell.setdefault((prediction.method, prediction.budget), []).append(prediction)
    dense = by_cell[DENSE, None]
    resampler = Resampler([p.group for p in dense], seed)
    truth = np.array([p.correct for p in dense])
    families = {name: np.array([p.family == name for p in dense]) for name in dict.fromkeys(p.family for p in dense)}
    rows = []
    for cell in cells:
        if cell.stages is None:
            rows.append(MethodResult(cell.name, cell.budget, reason=cell.reason))
            continue
        own = by_cell[cell.name, cell.budget]
        correct = np.array([p.correct for p in own])
        rows.append(
            MethodResult(
                name=cell.name,
                budget=cell.budget,
                stages=[
                    {"site": s.site, "policy": str(s.policy), "keep": None if s.keep is None else str(s.keep)}
                    for s in cell.stages
                ],
                accuracy=float(correct.mean()),
                interval=resampler.interval(correct),
                questions=len(own),
                average_visual_tokens=float(np.mean([average_tokens(p.kept, p.visual, depth) for p in own])),
                final_visual_tokens=float(np.mean([[p.visual, *p.kept.values()][-1] for p in own])),
                families={name: float(correct[chosen].mean()) for name, chosen in families.items()},
                family_intervals={name: resampler.interval(correct, chosen) for name, chosen in families.items()},
                versus_dense=None if cell.name == DENSE else resampler.compare(correct, truth),
                achieved=cell.achieved,
            )
        )
    return rows
