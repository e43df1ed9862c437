"""`Budget`: one vocabulary for how much a method may keep or cost, and the search for the setting that meets it."""

from __future__ import annotations

from dataclasses import dataclass, fields
from numbers import Integral
from typing import cast

from prunekit.budget.cost import CostModel, Latency
from prunekit.budget.knob import Knob
from prunekit.budget.levels import Items, layers_of
from prunekit.budget.measures import Measure, measures_of, shape_of, taken
from prunekit.errors import BudgetError, nearest
from prunekit.keep import Keep
from prunekit.plan import Shape, Stage
from prunekit.policy import PruningPolicy

__all__ = ["Budget", "Solved", "match_average"]


@dataclass(frozen=True)
class Solved:
    """A method brought to a budget.

    Attributes:
        stages: what to prune with.
        setting: how the method's knob is set; for a list of stages, the tokens that the last one keeps.
        achieved: what the stages cost by every measure: `tokens` and `ratio` after the last stage, `average` per
            decoder layer and `average_share`; `flops` (where it is known), `kv` and `kv_bytes` with a cost
            model; `latency` with times.
    """

    stages: tuple[Stage, ...]
    setting: dict[str, int | float]
    achieved: dict[str, float]


@dataclass(frozen=True)
class Budget:
    """How much a method may keep or cost: exactly one of these measures, as an upper bound.

    Args:
        tokens: visual tokens after the last stage.
        ratio: the same as a share of the visual tokens, floored, at least one.
        average: visual tokens per decoder layer on average: a number (int), or a share of all (float).
        flops: share of the dense prefill's FLOPs in the language model: multiply-adds of the decoder layers, text
            included, and of the policies' own work, over those of the dense decoder layers. The vision encoder, the
            projector and the output head are in neither.
        kv: bytes of the KV cache after the prefill, text included (int), or their share of the dense cache's (float).
        latency: share of the dense language model's prefill time, by a table or function of measured times.

    Raises:
        BudgetError: none or several are given, or one that is no budget: not above 0, or a share above 1.
    """

    tokens: int | None = None
    ratio: float | None = None
    average: int | float | None = None
    flops: float | None = None
    kv: int | float | None = None
    latency: float | None = None

    def __post_init__(self) -> None:
        given = {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}
        if len(given) != 1:
            names = ", ".join(f.name for f in fields(self))
            raise BudgetError(f"Budget takes exactly one of {names}; given {', '.join(given) or 'none'}.")
        ((name, amount),) = given.items()
        whole = isinstance(amount, Integral)
        if not isinstance(amount, (int, float)) or isinstance(amount, bool) or not amount > 0:
            raise BudgetError(f"Budget({name}={amount!r}): {amount} is no budget; give {_KINDS[name]}, above 0.")
        if name == "tokens" and not whole:
            raise BudgetError(f"Budget(tokens={amount!r}): give a whole number; a share is written ratio={amount!r}.")
        if (not whole or name not in _NUMBERS) and amount > 1:
            more = ", and a number is written without a point" if name in _NUMBERS else ""
            raise BudgetError(f"Budget({name}={amount!r}): {amount} is above 1; a share is at most 1.0{more}.")

    @classmethod
    def of(cls, amount: Budget | int | float) -> Budget:
        """Read the short form: a number is an `average`."""
        return amount if isinstance(amount, Budget) else cls(average=amount)

    @property
    def kind(self) -> str:
        """Which measure."""
        return next(f.name for f in fields(self) if getattr(self, f.name) is not None)

    @property
    def amount(self) -> int | float:
        """Its value."""
        return cast("int | float", getattr(self, self.kind))

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Read what `str` writes, such as `flops=0.3`.

        Raises:
            BudgetError: the text is no budget.
        """
        kind, _, amount = text.partition("=")
        if kind not in _KINDS:
            raise BudgetError(
                f"{text!r} is no budget; write {' or '.join(_KINDS)}, for example flops=0.3.{nearest(kind, _KINDS)}"
            )
        try:
            number = float(amount) if "." in amount or "e" in amount else int(amount)
        except ValueError:
            raise BudgetError(f"{text!r} is no budget: {amount!r} is no number.") from None
        return cls(**{kind: number})  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.kind}={self.amount!r}"

    @property
    def label(self) -> str:
        """For people: `25 %` is an average, all other measures are named."""
        whole = isinstance(self.amount, Integral) and self.kind in _NUMBERS
        amount = f"{self.amount:,}" if whole else f"{100 * self.amount:g} %"
        if self.kind == "average":
            return f"{self.amount} tokens" if whole else amount
        return f"{amount} {'bytes ' if whole and self.kind == 'kv' else ''}{_LABELS[self.kind]}"

    def check(self, model: CostModel | Shape | int, *, visual: int, text: int = 0) -> None:
        """Refuse what no method can mean on this model; arguments as of `solve`.

        Raises:
            BudgetError: the budget is above the dense model, or its measure needs a cost model.
        """
        name, _ = self._target(visual, model if isinstance(model, CostModel) else None, text)
        if name in ("flops", "kv", "kv_bytes") and not isinstance(model, CostModel):
            raise BudgetError(f"Budget({self}): {_MISSING[self.kind]}")

    def solve(
        self,
        items: Items | PruningPolicy,
        model: CostModel | Shape | int,
        *,
        visual: int,
        text: int = 0,
        latency: Latency | None = None,
    ) -> Solved:
        """Turn a method's own knob to the largest setting that is not above the budget.

        The knob of a `Method` is the field that its `knob` names: `keep` in whole tokens, or a layer. That of a list of
        stages is a common factor on what each of them keeps. A policy alone is one stage at `input`.

        Args:
            items: a method, a policy, a stage or stages.
            model: its costs; a `Shape` or the number of decoder layers is enough for `tokens`, `ratio` and `average`.
            visual: visual tokens of a sample.
            text: all other tokens of a sample.
            latency: times of the prefill by tokens in each layer, for `latency`.

        Raises:
            BudgetError: the budget is above the dense model, or out of the method's reach: the message gives its range
                and the nearest setting; or the method cannot be turned, or the measure needs what is not given.
        """
        self.check(model, visual=visual, text=text)
        costs = model if isinstance(model, CostModel) else None
        if isinstance(items, PruningPolicy):
            items = Stage("input", items, Keep(ratio=1.0))
        measures = measures_of(model, visual, text, latency)
        name, target = self._target(visual, costs, text)
        if name not in measures:
            raise BudgetError(f"Budget({self}): {_MISSING[name]}")
        knob = Knob(items, visual, shape_of(model))
        value = _search(knob, measures[name], target, _SAYS[name])
        stages = knob.stages(value)
        return Solved(stages, knob.setting(value), taken(measures, stages))

    def _target(self, visual: int, costs: CostModel | None, text: int) -> tuple[str, float]:
        """The measure that is compared, and its largest value.

        Raises:
            BudgetError: it is above the dense model's.
        """
        kind, amount = self.kind, self.amount
        whole = isinstance(amount, Integral)
        if kind == "ratio":
            return "tokens", max(1, int(amount * visual * (1 + 1e-12)))
        if kind == "kv" and whole:
            if costs is not None and amount > costs.cache((), visual, text):
                raise BudgetError(
                    f"Budget({self}): the dense cache has only {costs.cache((), visual, text):,} bytes for {visual}"
                    f" visual and {text} other tokens."
                )
            return "kv_bytes", amount
        if kind in ("tokens", "average"):
            target = amount if whole else amount * visual
            if target > visual:
                what = "per layer " if kind == "average" else ""
                raise BudgetError(f"{target:g} visual tokens {what}are asked for, but a sample has only {visual}.")
            return kind, target
        return kind, amount


_NUMBERS = ("tokens", "average", "kv")
_SHARE = "a share"
_KINDS = {
    "tokens": "a number of tokens",
    "ratio": _SHARE,
    "average": "a share of the visual tokens or a number of tokens",
    "flops": _SHARE,
    "kv": "a share or a number of bytes",
    "latency": _SHARE,
}
_LABELS = {"tokens": "at the end", "ratio": "at the end", "flops": "of FLOPs", "kv": "of KV", "latency": "of time"}
_SAYS = {
    "tokens": "visual tokens after the last stage",
    "average": "visual tokens per decoder layer",
    "flops": "of the dense prefill's FLOPs",
    "kv": "of the dense KV cache",
    "kv_bytes": "bytes of KV cache",
    "latency": "of the dense prefill's time",
}
_MISSING = {
    "flops": "FLOPs need a cost model, CostModel.of(model), and not a number of layers.",
    "kv": "the KV cache needs a cost model, CostModel.of(model), and not a number of layers.",
    "latency": "a time needs measurements: give latency=LatencyTable({tokens: time, ...}) or a function.",
}


def match_average(items: Items, average: float, *, visual: int, depth: Shape | int) -> tuple[Stage, ...]:
    """Turn a method's own knob until its average comes as near as possible to `average`, and not above.

    Args:
        items: a method, a stage or stages.
        average: wanted visual tokens per decoder layer.
        visual: visual tokens of a sample.
        depth: decoder layers, or the model's `Shape` for methods that prune inside the vision encoder.

    Raises:
        BudgetError: the average is outside of what the method can reach; the message gives its range.
    """
    knob = Knob(items, visual, depth)
    measure = measures_of(depth, visual, 0, None)["average"]
    return knob.stages(_search(knob, measure, average, _SAYS["average"], most=visual))


def _search(knob: Knob, measure: Measure, target: float, what: str, most: float | None = None) -> int:
    """The largest setting that is not above the target.

    Raises:
        BudgetError: there is none, or the setting does not change this measure.
    """
    low, high = (measure(knob.stages(value)) for value in knob.reach)
    still = low == high and knob.reach[0] < knob.reach[1] and low != target
    if still or low > target * (1 + 1e-9) or target > (target if most is None else most):
        near = ", ".join(f"{name}={value:g}" for name, value in knob.setting(knob.reach[0]).items())
        raise BudgetError(
            f"{knob.name} cannot reach {target:g} {what}; the nearest is {low:g} ({near}); on"
            f" {layers_of(knob.depth)} layers and {knob.visual} tokens its range is {low:g} to {high:g}."
        )
    return knob.largest(measure, target)
