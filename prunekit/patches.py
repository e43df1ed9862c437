"""From the patches of a vision encoder to the visual tokens of a language model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

__all__ = ["Encoded", "Image", "squares"]


@dataclass(frozen=True)
class Image:
    """One image (or video) of a sample.

    Attributes:
        tokens: its visual tokens.
        grid: their rows and columns, None where they form no grid.
    """

    tokens: int
    grid: tuple[int, int] | None = None


@dataclass
class Encoded:
    """One call of a model's `get_image_features` or `get_video_features`.

    Attributes:
        kind: `image` or `video`.
        inputs: its arguments by name (`pixel_values`, `image_grid_thw`, `image_sizes`, ...).
        output: what it returned.
        tokens: visual tokens of each image, None where they cannot be told apart.
        total: visual tokens of all images.
        used: whether a prompt was run with them.
    """

    kind: str
    inputs: dict[str, Any] = field(default_factory=dict)
    output: Any = None
    tokens: tuple[int, ...] | None = None
    total: int = 0
    used: bool = False

    @property
    def features(self) -> Any:
        """The visual tokens in `output`: a tensor, or one tensor an image; None where there are none to be found."""
        for name in ("pooler_output", "last_hidden_state"):
            if getattr(self.output, name, None) is not None:
                return getattr(self.output, name)
        levels = getattr(self.output, "deepstack_features", None)
        if levels:  # nothing enters with the text: pairs of a decoder layer and what it is given, a tensor an image
            return levels[0][1]
        return self.output if isinstance(self.output, (Tensor, tuple, list)) else None

    @property
    def late(self) -> bool:
        """Whether features are added between decoder layers only, so that visual tokens enter as zeros."""
        early = (getattr(self.output, name, None) for name in ("pooler_output", "last_hidden_state"))
        return bool(getattr(self.output, "deepstack_features", None)) and all(each is None for each in early)

    @property
    def device(self) -> torch.device:
        """Where the visual tokens are."""
        features = self.features
        return (features if isinstance(features, Tensor) else features[0]).device


def squares(patches: int, merge: int) -> Tensor:
    """The `merge` x `merge` squares of a square raster of patches, row by row: [tokens, merge^2]."""
    if merge == 1:
        return torch.arange(patches)[:, None]
    side = round(patches**0.5)
    return rearrange(torch.arange(side * side), "(h i w j) -> (h w) (i j)", i=merge, j=merge, w=side // merge)
