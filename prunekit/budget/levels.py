"""How many visual tokens enter each decoder layer."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.errors import BudgetError
from prunekit.plan import Method, Plan, Shape, Stage

__all__ = ["Items", "average_tokens", "items_of", "layers_of", "tokens_per_layer"]

Items = Method | Stage | Sequence[Stage | Method]


def tokens_per_layer(items: Items, visual: int, depth: Shape | int) -> tuple[int, ...]:
    """Visual tokens that enter each of `depth` decoder layers, of a sample with `visual` of them.

    Raises:
        BudgetError: a stage keeps more than there are, or decides the number itself (it depends on the data).
    """
    plan = Plan.of(items_of(items), depth)
    layers = layers_of(depth)
    levels = [visual] * layers
    planned = list(zip(plan.stages, plan.check(visual), strict=True))
    for number, (stage, count) in enumerate(planned):
        later = planned[number + 1 :]
        if count is None and stage.where.part == 0 and any(s.where.part < 2 and c for s, c in later):
            continue  # whatever it leaves, another stage before the language model says how many enter
        if count is None:
            raise BudgetError(f"Stage({stage.site!r}) decides the number of tokens by itself; it cannot be planned.")
        start = stage.where.index if stage.where.part == 2 else 0
        levels[start:] = [count] * (layers - start)
    return tuple(levels)


def average_tokens(items: Items, visual: int, depth: Shape | int) -> float:
    """Mean of `tokens_per_layer`: visual tokens per decoder layer."""
    return sum(tokens_per_layer(items, visual, depth)) / layers_of(depth)


def layers_of(depth: Shape | int) -> int:
    """The number of decoder layers."""
    return depth if isinstance(depth, int) else depth.depth


def items_of(items: Items) -> list[Stage | Method]:
    """A list of one where one is given."""
    return [items] if isinstance(items, (Stage, Method)) else list(items)
