"""Every measure of what stages cost, by its name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from prunekit.budget.cost import CostModel, Latency
from prunekit.budget.levels import Items, average_tokens, items_of, tokens_per_layer
from prunekit.budget.scorers import UnknownCostError
from prunekit.plan import Plan, Shape, Stage

__all__ = ["Measure", "achieved", "measures_of", "shape_of", "taken"]

Measure = Callable[[Sequence[Stage]], float]


def achieved(
    items: Items,
    model: CostModel | Shape | int,
    *,
    visual: int,
    text: int = 0,
    latency: Latency | None = None,
) -> dict[str, float]:
    """What stages cost by every measure, as in `Solved.achieved`; arguments as of `Budget.solve`.

    Raises:
        BudgetError: a stage lets the data decide.
    """
    stages = Plan.of(items_of(items), shape_of(model)).stages
    return taken(measures_of(model, visual, text, latency), stages)


def taken(measures: Mapping[str, Measure], stages: Sequence[Stage]) -> dict[str, float]:
    """All measures of some stages, but those that are not known on this model."""
    found = {}
    for name, measure in measures.items():
        with suppress(UnknownCostError):
            found[name] = measure(stages)
    return found


def shape_of(model: CostModel | Shape | int) -> Shape | int:
    """The layers of a model."""
    return model.shape if isinstance(model, CostModel) else model


def measures_of(model: CostModel | Shape | int, visual: int, text: int, latency: Latency | None) -> dict[str, Measure]:
    """Every measure that can be taken with what is given."""
    costs, shape = model if isinstance(model, CostModel) else None, shape_of(model)
    found: dict[str, Measure] = {
        "tokens": lambda stages: tokens_per_layer(stages, visual, shape)[-1],
        "ratio": lambda stages: tokens_per_layer(stages, visual, shape)[-1] / visual,
        "average": lambda stages: average_tokens(stages, visual, shape),
        "average_share": lambda stages: average_tokens(stages, visual, shape) / visual,
    }
    if costs is not None:
        found["flops"] = lambda stages: costs.flops(stages, visual, text)
        found["kv"] = lambda stages: costs.cache(stages, visual, text) / costs.cache((), visual, text)
        found["kv_bytes"] = lambda stages: costs.cache(stages, visual, text)
    if latency is not None:

        def share(stages: Sequence[Stage]) -> float:
            levels = tokens_per_layer(stages, visual, shape)
            return latency([n + text for n in levels]) / latency([visual + text] * len(levels))

        found["latency"] = share
    return found
