"""AveragePooling: the content-free baseline that merges instead of dropping."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunekit.keep import Keep
from prunekit.policies.uniform_grid import UniformGrid
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
        owner = apart.argmin(-1).masked_fill(~tokens.valid, -1)
        return replace(selection, owner=owner)


def distances(tokens: VisualTokens, selection: Selection) -> Tensor:
    """Steps down and across from each token to each kept one, [batch, visual, kept, 2]; infinite between images."""
    kept = selection.kept.clamp(min=0)
    image, place = tokens.image_number(), tokens.source.clamp(min=0)
    if tokens.grid is not None:
        height, width = tokens.grid
        place = place % (height * width)
        places = torch.stack([place // width, place % width], -1).float()
    else:
        places = torch.stack([place, torch.zeros_like(place)], -1).float()
    own = places.gather(1, kept[..., None].expand(-1, -1, 2))
    apart = (places[:, :, None] - own[:, None]).abs()
    other = (image[..., None] != image.gather(1, kept)[:, None]) | (selection.kept < 0)[:, None]
    return apart.masked_fill(other[..., None], torch.inf)
