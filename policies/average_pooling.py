"""AveragePooling: the content-free baseline that merges instead of dropping."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate

import torch
from torch import Tensor

from prunekit.keep import Keep
from prunekit.patches import Image
from prunekit.policies.uniform_grid import UniformGrid, images_of
from prunekit.policy import PruningPolicy
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["AveragePooling"]


@dataclass(frozen=True)
class AveragePooling(PruningPolicy):
    """Average the tokens of each image over the cells of a regular lattice, whatever it shows.

    The kept tokens are those of `UniformGrid`; each becomes the mean of the tokens to which it is nearest, so that
    numbers that divide the grid give 2-D average pooling. Where tokens form no grid, cells are runs of tokens.
    """

    sites = ("connector", "input", "decoder")

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        selection = UniformGrid().select(tokens, keep)
        if selection.counts == tokens.counts:
            return selection
        apart = distances(tokens, selection).square().sum(-1)
        # A kept token stands behind the middle of a cell of even width, so that the later one of two is the nearer one.
        owner = apart.shape[2] - 1 - apart.flip(2).argmin(-1)
        return replace(selection, owner=owner.masked_fill(~tokens.valid, -1))


def distances(tokens: VisualTokens, selection: Selection) -> Tensor:
    """Steps down and across from each token to each kept one, [batch, visual, kept, 2]; infinite between images."""
    kept = selection.kept.clamp(min=0)
    image, places = tokens.image_number(), _places(tokens)
    own = places.gather(1, kept[..., None].expand(-1, -1, 2))
    apart = (places[:, :, None] - own[:, None]).abs()
    other = (image[..., None] != image.gather(1, kept)[:, None]) | (selection.kept < 0)[:, None]
    return apart.masked_fill(other[..., None], torch.inf)


def _places(tokens: VisualTokens) -> Tensor:
    """Row and column of each token in its image, [batch, visual, 2]; an image without a grid is one row."""
    table = torch.zeros(len(tokens.total), max(1, *tokens.total), 2)
    for row, total in enumerate(tokens.total):
        images = images_of(tokens, row) or (Image(total),)
        for image, start in zip(images, accumulate((image.tokens for image in images), initial=0), strict=False):
            place, width = torch.arange(image.tokens), image.grid[1] if image.grid else max(1, image.tokens)
            table[row, start : start + image.tokens] = torch.stack([place // width, place % width], -1).float()
    return table.to(tokens.source.device).gather(1, tokens.source.clamp(min=0)[..., None].expand(-1, -1, 2))
