"""The one number by which a method is brought to a budget, and the search for its largest setting within it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, is_dataclass, replace
from functools import cached_property
from typing import Any

from prunekit.budget.levels import Items, items_of, layers_of, tokens_per_layer
from prunekit.errors import BudgetError
from prunekit.keep import Keep
from prunekit.plan import Method, Plan, Shape, Stage

__all__ = ["Knob"]

ROUNDING = 1 + 1e-9
"""A value that is above a budget by no more than this factor is equal to it."""

Stages = tuple[Stage, ...]


@dataclass(frozen=True)
class Knob:
    """What can be turned: a field of a method, or a common factor on the shares of several stages.

    Attributes:
        items: a method, a stage or stages.
        visual: visual tokens of a sample.
        depth: shape of the model.
    """

    items: Items
    visual: int
    depth: Shape | int

    @property
    def name(self) -> str:
        """For messages."""
        return type(self.items).__name__ if isinstance(self.items, Method) else "this list of stages"

    @property
    def field(self) -> str:
        """The method's field; empty where stages are scaled."""
        field = self.items.knob if isinstance(self.items, Method) else ""
        return field if field and hasattr(self.items, field) and is_dataclass(self.items) else ""

    def setting(self, value: int) -> dict[str, int | float]:
        """A setting as a user would write it."""
        if self.field:
            return {self.field: self._written(value)}
        return {"last stage": value}

    def stages(self, value: int) -> Stages:
        """The stages at a setting.

        Raises:
            BudgetError: the method cannot be set to that.
        """
        if self.field:
            turned: dict[str, Any] = {self.field: self._written(value)}
            return Plan.of([replace(self.items, **turned)], self.depth).stages  # type: ignore[type-var, list-item]
        return tuple(
            replace(stage, keep=Keep(tokens=min(self.visual, max(1, round(count * value / self._last)))))
            for stage, count in ((stage, stage.count(self.visual) or 1) for stage in self._plan.stages)
        )

    @cached_property
    def reach(self) -> tuple[int, int]:
        """The lowest and the highest setting that the method takes: some halve tokens at most.

        Raises:
            BudgetError: it cannot be turned at all; the message says why.
        """
        self._check()
        most = self.visual if self.field in ("", "keep") else layers_of(self.depth) - 1
        if self._works(most):
            return _first(1, most, self._works), most
        if self._works(1):
            return 1, _first(1, most, lambda value: not self._works(value)) - 1
        tokens_per_layer(self.stages(most), self.visual, self.depth)  # raises, and says why
        raise AssertionError

    def largest(self, measure: Callable[[Stages], float], target: float) -> int:
        """The largest setting whose measure, which grows with the setting, is not above the target.

        The lowest must not be above it.
        """
        least, most = self.reach

        def above(value: int) -> bool:
            return value > most or measure(self.stages(value)) > target * ROUNDING

        return _first(least, most + 1, above) - 1

    def _check(self) -> None:
        method = self.items if isinstance(self.items, Method) else None
        if method is not None and not method.knob:
            raise BudgetError(
                f"{self.name} has no setting that a budget could turn: what it keeps in each layer was chosen when it"
                " was made. Run it as configured."
            )
        if method is not None and self.field == "keep" and getattr(method, "keep", None) is not None:
            undecided = [stage for stage in Plan.of([method], self.depth).stages if self._by_data(stage)]
            if undecided and undecided[-1].where.part > 0:
                raise BudgetError(
                    f"{self.name} as configured lets the data decide how many tokens stay at"
                    f" {undecided[-1].site!r}; it cannot be matched. Run it as configured."
                )
        if not self.field:
            _ = self._last

    def _by_data(self, stage: Stage) -> bool:
        try:
            return stage.keep is None and stage.policy.planned(self.visual) is None
        except BudgetError:
            return False  # planned, though not for so few tokens

    @cached_property
    def _plan(self) -> Plan:
        return Plan.of(items_of(self.items), self.depth)

    @cached_property
    def _last(self) -> int:
        """What the last stage keeps as configured."""
        last = self._plan.check(self.visual)[-1] if self._plan.stages else self.visual
        if not last:
            how = "keeps no token" if last == 0 else "decides the number of tokens by itself"
            raise BudgetError(f"Stage({self._plan.stages[-1].site!r}) {how}; it cannot be matched.")
        return last

    @cached_property
    def _written(self) -> Callable[[int], int | float]:
        """Whole numbers, or shares for methods that take nothing else."""
        if self.field != "keep":
            return lambda value: value
        try:
            replace(self.items, keep=self.visual).stages_of(_shape(self.depth))  # type: ignore[type-var, union-attr]
        except BudgetError:
            return lambda value: value / self.visual
        return lambda value: value

    def _works(self, value: int) -> bool:
        try:
            tokens_per_layer(self.stages(value), self.visual, self.depth)
        except BudgetError:
            return False
        return True


def _shape(depth: Shape | int) -> Shape:
    return Shape(depth) if isinstance(depth, int) else depth


def _first(least: int, most: int, holds: Callable[[int], bool]) -> int:
    """The first number for which something holds that holds for all above it, and for `most`."""
    while least < most:
        middle = (least + most) // 2
        if holds(middle):
            most = middle
        else:
            least = middle + 1
    return least
