"""Mistral Small 3.1 and its relatives: Pixtral's encoder, which takes images of any size."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn

from prunekit.adapter import ModelAdapter
from prunekit.patches import Encoded

__all__ = ["Mistral3Adapter"]


class Mistral3Adapter(ModelAdapter):
    """Pixtral's encoder runs on all images in one sequence; 2 x 2 patches are merged; a separator ends every row.

    Separators are text to the model: they are never dropped.
    """

    model_types = ("mistral3",)
    encoder = "vision_tower"
    encoder_layers = "transformer.layers"
    encoder_attention = "attention"
    connector = "multi_modal_projector"
    packed = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.merge = int(getattr(self.model.config, "spatial_merge_size", 1))

    def grid_of(self, tokens: int) -> None:
        return None

    def patches_of_tokens(self, patches: int, encoded: Encoded) -> Tensor:
        return rasters(self.grids(encoded), self.merge)

    def packed_tokens(self, encoded: Encoded) -> tuple[int, ...]:
        return tuple((rows // self.merge) * (columns // self.merge) for rows, columns in self.grids(encoded))

    def grids(self, encoded: Encoded) -> list[tuple[int, int]]:
        """Rows and columns of patches of each image."""
        size = self.model.config.vision_config.patch_size
        sizes: list[list[int]] = torch.as_tensor(encoded.inputs["image_sizes"]).tolist()
        return [(height // size, width // size) for height, width in sizes]


def rasters(grids: list[tuple[int, int]], merge: int) -> Tensor:
    """Squares of patches of images that follow each other, each a raster: [tokens, merge^2]."""
    parts, start = [], 0
    for rows, columns in grids:
        raster = torch.arange(start, start + rows * columns).view(rows, columns)
        raster = raster[: rows // merge * merge, : columns // merge * merge]
        parts.append(rearrange(raster, "(h i) (w j) -> (h w) (i j)", i=merge, j=merge))
        start += rows * columns
    return torch.cat(parts)
