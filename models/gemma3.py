"""Gemma 3."""

from __future__ import annotations

from torch import nn

from prunekit.adapter import ModelAdapter

__all__ = ["Gemma3Adapter"]


class Gemma3Adapter(ModelAdapter):
    """SigLIP, averages over squares of patches (4 x 4 in the released models), and Gemma.

    Five of six decoder layers look at a window; an image's tokens see each other in both directions. Masks and rotary
    tables differ between the two kinds of layers.
    """

    model_types = ("gemma3",)
    encoder = "vision_tower"
    connector = "multi_modal_projector"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        vision = self.model.config.vision_config
        self.merge = vision.image_size // vision.patch_size // round(self.model.config.mm_tokens_per_image**0.5)
