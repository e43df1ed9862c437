"""What `prunekit.cost` is asked for: methods by name, budgets, and what a method leaves open."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunekit.budget import Budget
from prunekit.plan import Stage

__all__ = ["amount", "left_open", "named"]


def amount(budget: Any) -> Any:
    """A budget as results show it: an average is a number, any other measure a text; None stays None.

    Raises:
        BudgetError: it is no budget.
    """
    if budget is None:
        return None
    if isinstance(budget, str):
        budget = Budget.parse(budget)
    if not isinstance(budget, Budget):
        budget = Budget.of(budget)
    return budget.amount if budget.kind == "average" else str(budget)


def named(methods: Sequence[Any]) -> list[tuple[str, Any]]:
    """Methods and their names; texts are read as on the command line."""
    from prunekit.evaluation.config import read_methods

    found: list[tuple[str, Any]] = []
    for method in methods:
        if isinstance(method, str):
            found += read_methods([method]).items()
        else:
            found.append((type(method).__name__ if not isinstance(method, (list, tuple)) else "stages", method))
    counts: dict[str, int] = {}
    for place, (name, method) in enumerate(found):
        counts[name] = counts.get(name, 0) + 1
        found[place] = (name if counts[name] == 1 else f"{name} {counts[name]}", method)
    return found


def left_open(stages: Sequence[Stage], visual: int) -> str:
    """Which stages keep a number of tokens that the data decide, and between which bounds."""
    said, most = [], visual
    for place, stage in enumerate(stages):
        number = stage.count(visual)
        if number is None:
            least = next((found for later in stages[place:] if (found := later.count(visual)) is not None), None)
            lower = "" if least is None else f"at least {min(least, most)} and "
            said.append(f"{type(stage.policy).__name__} at {stage.site} {lower}at most {most}")
        else:
            most = min(most, number)
    return f" Of {visual} visual tokens a sample, there stay: {'; '.join(said)}." if said else ""
