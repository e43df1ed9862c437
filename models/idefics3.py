"""Idefics3, SmolVLM and SmolVLM2."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.adapter import ModelAdapter

__all__ = ["Idefics3Adapter"]


class Idefics3Adapter(ModelAdapter):
    """SigLIP on square tiles and a small whole image, a pixel shuffle, and Llama.

    The model is handed tiles, not images, so that budgets per image are budgets per tile. Videos are images.
    """

    model_types = ("idefics3", "smolvlm")
    encoder = "vision_model"
    connector = "connector"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.merge = int(self.model.config.scale_factor)

    def image_tokens(self, features: Any, inputs: dict[str, Any]) -> tuple[int, ...] | None:
        size = self.tokens_per_image
        total = sum(each.shape[:-1].numel() for each in features)  # one entry a row of the batch
        return None if size is None or total % size else (size,) * (total // size)
