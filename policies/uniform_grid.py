"""Evenly spread tokens: the content-free baseline."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.keep import Keep
from prunekit.policy import PruningPolicy
from prunekit.tokens import Selection, VisualTokens

__all__ = ["UniformGrid"]


@dataclass(frozen=True)
class UniformGrid(PruningPolicy):
    """Keep tokens on a regular lattice over each image, whatever it shows.

    k tokens of a grid of h x w are laid in about `sqrt(k h / w)` evenly spaced rows, each evenly filled. A sample's
    budget is split evenly over its images. Where the tokens are no whole grid any more (after an earlier stage),
    every n/k-th stays.
    """

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        assert keep is not None
        counts = tokens.budget(keep)
        kept = torch.full((len(counts), max(counts)), -1)
        for row, (count, there, total) in enumerate(zip(counts, tokens.counts, tokens.total, strict=True)):
            kept[row, :count] = self._row(tokens, count, there, total)
        return Selection(kept.to(tokens.source.device), counts)

    def _row(self, tokens: VisualTokens, count: int, there: int, total: int) -> Tensor:
        size = tokens.per_image
        if tokens.grid is None or size is None or there != total or total % size:
            return strided(count, there)
        images = total // size
        shares = [count * (i + 1) // images - count * i // images for i in range(images)]
        return torch.cat([image * size + lattice(share, *tokens.grid) for image, share in enumerate(shares)])


def strided(count: int, total: int) -> Tensor:
    """`count` of `total` positions at equal steps, ascending."""
    return (2 * torch.arange(count) + 1) * total // (2 * max(count, 1))


def lattice(count: int, height: int, width: int) -> Tensor:
    """`count` positions of a row-major grid, spread evenly in both directions, ascending and distinct."""
    if count == 0:
        return torch.arange(0)
    lines = min(height, max(round((count * height / width) ** 0.5), -(-count // width), 1))
    place = torch.arange(count)
    line = place * lines // count
    start = -(-line * count // lines)  # first place of the line
    filled = -(-(line + 1) * count // lines) - start
    return strided_at(line, lines, height) * width + strided_at(place - start, filled, width)


def strided_at(place: Tensor, count: Tensor | int, total: int) -> Tensor:
    """Position `place` of `count` at equal steps over `total`."""
    return (2 * place + 1) * total // (2 * count)
