"""Evenly spread tokens: the content-free baseline."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from prunekit.keep import Keep
from prunekit.patches import Image
from prunekit.policy import PruningPolicy
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["UniformGrid"]


@dataclass(frozen=True)
class UniformGrid(PruningPolicy):
    """Keep tokens on a regular lattice over each image, whatever it shows.

    k tokens of a grid of h x w are laid in about `sqrt(k h / w)` evenly spaced rows, each evenly filled. A sample's
    budget is split over its images by their numbers of tokens. Where the tokens are no whole grid (tiles with newlines,
    or after an earlier stage), every n/k-th stays.
    """

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        assert keep is not None
        counts = tokens.budget(keep)
        kept = torch.full((len(counts), max(counts)), -1)
        shares = tokens.budget_per_image(keep) if keep.per == "image" else [None] * len(counts)
        for row, (count, share) in enumerate(zip(counts, shares, strict=True)):
            kept[row, :count] = self._row(tokens, row, count, share)
        return Selection(kept.to(tokens.source.device), counts)

    def _row(self, tokens: VisualTokens, row: int, count: int, share: tuple[int, ...] | None) -> Tensor:
        there, total = tokens.counts[row], tokens.total[row]
        images = images_of(tokens, row)
        alive = tokens.alive[row] if tokens.alive is not None else tuple(image.tokens for image in images or ())
        if images is None or (there != total and share is None) or sum(alive) != there:
            return strided(count, there)
        if share is None:
            ends = [0, *accumulate(image.tokens for image in images)]
            share = tuple(count * end // total - count * start // total for start, end in pairwise(ends))
        starts = accumulate(alive, initial=0)
        parts = [
            start
            + (lattice(part, *image.grid) if image.grid is not None and left == image.tokens else strided(part, left))
            for part, image, left, start in zip(share, images, alive, starts, strict=False)
        ]
        return torch.cat(parts) if parts else torch.arange(0)


def images_of(tokens: VisualTokens, row: int) -> tuple[Image, ...] | None:
    """The images of a row; None where they cannot be told apart."""
    if tokens.images is not None:
        return tokens.images[row]
    size, total = tokens.per_image, tokens.total[row]
    return None if size is None or total % size else (Image(size, tokens.grid),) * (total // size)


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
