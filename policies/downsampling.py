"""Downsampling: what a smaller picture of the features would show."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from prunekit.keep import Keep
from prunekit.policies.average_pooling import distances
from prunekit.policies.uniform_grid import UniformGrid
from prunekit.policy import PruningPolicy
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["Downsampling"]


@dataclass(frozen=True)
class Downsampling(PruningPolicy):
    """Resample each image's grid of features to fewer points, whatever it shows.

    The points are those of `UniformGrid`; each is the average of the tokens around it under a triangle filter as wide
    as the step between points (bilinear resampling with antialiasing). It stands for downsampling the image to the same
    number of tokens: most encoders make equally many patches of every image, so that a smaller image saves nothing.
    """

    sites = ("connector", "input", "decoder")

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        selection = UniformGrid().select(tokens, keep)
        assert selection.counts is not None
        ratio = [max(1.0, now / max(1, count)) for now, count in zip(tokens.counts, selection.counts, strict=True)]
        step = torch.tensor(ratio, device=tokens.hidden.device)[:, None, None, None]
        if tokens.grid is not None:
            step = step.sqrt()
        weight = (1 - distances(tokens, selection) / step).clamp(min=0).prod(-1) * tokens.valid[..., None]
        mix = weight.transpose(1, 2)
        return replace(selection, mix=mix / mix.sum(-1, keepdim=True).clamp(min=torch.finfo(mix.dtype).tiny))
