"""Downsampling: what a smaller picture of the features would show."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from prunekit.keep import Keep
from prunekit.policies.average_pooling import distances
from prunekit.policies.uniform_grid import UniformGrid, images_of
from prunekit.policy import Products, PruningPolicy
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

    def products(self, given: Products) -> int:
        return given.now * given.kept * given.width

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        selection = UniformGrid().select(tokens, keep)
        assert selection.counts is not None
        steps = []
        for row, (now, count) in enumerate(zip(tokens.counts, selection.counts, strict=True)):
            images = images_of(tokens, row)
            axes = 2 if images and all(image.grid for image in images) else 1
            steps.append(max(1.0, now / max(1, count)) ** (1 / axes))
        step = torch.tensor(steps, device=tokens.hidden.device)[:, None, None, None]
        weight = (1 - distances(tokens, selection) / step).clamp(min=0).prod(-1) * tokens.valid[..., None]
        mix = weight.transpose(1, 2)
        return replace(selection, mix=mix / mix.sum(-1, keepdim=True).clamp(min=torch.finfo(mix.dtype).tiny))
