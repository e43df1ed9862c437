"""One budget for all methods: the average number of visual tokens that enter a decoder layer.

A one-stage method before the language model spends its budget in every layer; FastV runs its first layers on all
tokens; STAR has two levels. Compared at the same count after the last stage they would be given different amounts of
compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import is_dataclass, replace
from typing import Any

from prunekit.errors import BudgetError
from prunekit.keep import Keep
from prunekit.plan import Method, Plan, Shape, Stage

__all__ = ["average_tokens", "match_average", "tokens_per_layer"]

Items = Method | Stage | Sequence[Stage | Method]


def tokens_per_layer(items: Items, visual: int, depth: Shape | int) -> tuple[int, ...]:
    """Visual tokens that enter each of `depth` decoder layers, of a sample with `visual` of them.

    Raises:
        BudgetError: a stage keeps more than there are, or decides the number itself (it depends on the data).
    """
    plan = Plan.of(_list(items), depth)
    layers = _layers(depth)
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
    return sum(tokens_per_layer(items, visual, depth)) / _layers(depth)


def match_average(items: Items, average: float, *, visual: int, depth: Shape | int) -> tuple[Stage, ...]:
    """Turn a method's own knob until its average comes as near as possible to `average`, and not above.

    The knob of a `Method` is its field `keep`, in whole tokens; that of a list of stages is a common factor on the
    share that each of them keeps.

    Args:
        items: a method, a stage or stages.
        average: wanted visual tokens per decoder layer.
        visual: visual tokens of a sample.
        depth: decoder layers, or the model's `Shape` for methods that prune inside the vision encoder.

    Raises:
        BudgetError: the average is outside of what the method can reach; the message gives its range.
    """
    low, high = _at(items, _lowest(items, visual, depth), visual, depth), _at(items, visual, visual, depth)
    reach = [average_tokens(stages, visual, depth) for stages in (low, high)]
    if not reach[0] <= average * (1 + 1e-9) or average > visual:
        name = type(items).__name__ if isinstance(items, Method) else "this list of stages"
        raise BudgetError(
            f"{name} cannot reach {average:g} visual tokens per decoder layer; on {_layers(depth)} layers and {visual}"
            f" tokens its range is {reach[0]:g} to {min(reach[1], visual):g}."
        )
    least, most = (
        _lowest(items, visual, depth),
        visual,
    )  # average_tokens grows with the knob: find the largest setting that is not above
    while least < most:
        middle = (least + most + 1) // 2
        if average_tokens(_at(items, middle, visual, depth), visual, depth) <= average * (1 + 1e-9):
            least = middle
        else:
            most = middle - 1
    return _at(items, least, visual, depth)


def _lowest(items: Items, visual: int, depth: Shape | int) -> int:
    """The lowest setting of the knob that is possible at all: some methods halve tokens at most."""
    least, most = 1, visual
    while least < most:
        middle = (least + most) // 2
        try:
            average_tokens(_at(items, middle, visual, depth), visual, depth)
        except BudgetError:
            least = middle + 1
        else:
            most = middle
    return least


def _at(items: Items, tokens: int, visual: int, depth: Shape | int) -> tuple[Stage, ...]:
    """Stages at one setting of the knob, `tokens` of `visual`."""
    if isinstance(items, Method) and is_dataclass(items) and hasattr(items, "keep"):
        knob: Any = tokens
        return Plan.of([replace(items, keep=knob)], depth).stages
    plan = Plan.of(_list(items), depth)
    last = plan.check(visual)[-1]
    if not last:
        how = "keeps no token" if last == 0 else "decides the number of tokens by itself"
        raise BudgetError(f"Stage({plan.stages[-1].site!r}) {how}; it cannot be matched.")
    return tuple(
        replace(stage, keep=Keep(tokens=min(visual, max(1, round(count * tokens / last)))))
        for stage, count in ((stage, stage.count(visual) or 1) for stage in plan.stages)
    )


def _layers(depth: Shape | int) -> int:
    return depth if isinstance(depth, int) else depth.depth


def _list(items: Items) -> list[Stage | Method]:
    return [items] if isinstance(items, (Stage, Method)) else list(items)
