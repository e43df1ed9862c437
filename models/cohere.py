"""Aya Vision and Cohere2 Vision (Command A Vision)."""

from __future__ import annotations

from torch import nn

from prunekit.adapter import ModelAdapter

__all__ = ["CohereVisionAdapter"]


class CohereVisionAdapter(ModelAdapter):
    """SigLIP, a pixel shuffle, and Cohere2, three of whose four layers look at a window only.

    The model is handed tiles, not images, so that budgets per image are budgets per tile.
    """

    model_types = ("aya_vision", "cohere2_vision")
    encoder = "vision_tower"
    connector = "multi_modal_projector"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.merge = int(self.model.config.downsample_factor)
