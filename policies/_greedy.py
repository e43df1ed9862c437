"""What greedy selections share: cosines, and turning an order of picks into a selection."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.selection import Selection

__all__ = ["LEAST", "cosines", "picked"]

LEAST = torch.finfo(torch.float32).min


def cosines(states: Tensor) -> Tensor:
    """Cosine of every pair of tokens in float32, [batch, tokens, tokens]."""
    unit = torch.nn.functional.normalize(states.float(), dim=-1)
    return unit @ unit.transpose(1, 2)


def picked(order: Tensor, counts: tuple[int, ...], width: int) -> Selection:
    """The selection of tokens that were picked in some order, [batch, picks], of which each row takes `counts`.

    Args:
        width: number of tokens that the policy saw.
    """
    place = torch.arange(order.shape[1], device=order.device)
    surplus = place >= torch.tensor(counts, device=order.device)[:, None]
    kept = order.masked_fill(surplus, width).sort(1).values
    return Selection(kept.masked_fill(kept == width, -1), counts)
