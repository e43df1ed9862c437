"""What selections share: cosines, ranks within groups, and turning an order of picks into a selection."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.selection import Selection

__all__ = ["LEAST", "cosines", "first_best", "picked", "rank_within"]

LEAST = torch.finfo(torch.float32).min


def cosines(states: Tensor) -> Tensor:
    """Cosine of every pair of tokens in float32, [batch, tokens, tokens]."""
    unit = torch.nn.functional.normalize(states.float(), dim=-1)
    return unit @ unit.transpose(1, 2)


def first_best(values: Tensor, slack: Tensor | float = 0.0) -> Tensor:
    """The first token that is best up to rounding, [batch, 1].

    Equal tokens (separators, blank patches) have equal values up to the order in which sums are taken, which differs
    between a batch and its rows alone; `slack` is more than that and less than a difference that means something.
    """
    values = values.nan_to_num(0)  # among tokens that are left, as good as any
    best = values.amax(-1, keepdim=True)
    return (values >= best - slack).to(torch.uint8).argmax(-1, keepdim=True)


def picked(order: Tensor, counts: tuple[int, ...], width: int) -> Selection:
    """The selection of tokens that were picked in some order, [batch, picks], of which each row takes `counts`.

    Args:
        width: number of tokens that the policy saw.
    """
    place = torch.arange(order.shape[1], device=order.device)
    surplus = place >= torch.tensor(counts, device=order.device)[:, None]
    kept = order.masked_fill(surplus, width).sort(1).values
    return Selection(kept.masked_fill(kept == width, -1), counts)


def rank_within(group: Tensor, score: Tensor) -> Tensor:
    """The rank of each token within its group by falling score, [batch, tokens]."""
    order = score.argsort(dim=1, descending=True, stable=True)
    order = order.gather(1, group.gather(1, order).argsort(dim=1, stable=True))
    number = group.gather(1, order)
    place = torch.arange(order.shape[1], device=order.device).expand_as(order)
    starts = torch.nn.functional.pad(torch.where(number[:, 1:] != number[:, :-1], place[:, 1:], 0), (1, 0))
    return torch.zeros_like(order).scatter(1, order, place - starts.cummax(1).values)
