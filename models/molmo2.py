"""Molmo 2."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.adapter import ModelAdapter
from prunekit.patches import Encoded

__all__ = ["Molmo2Adapter"]


class Molmo2Adapter(ModelAdapter):
    """A ViT on overlapping crops, attention pooling of up to nine patches into a token, and Qwen or OLMo.

    The features of two encoder layers stand side by side; attention is read from the deeper one unless a policy names
    another. A token's value is the mean of its patches.
    """

    model_types = ("molmo2",)
    encoder = "vision_tower"
    encoder_layers = "layers"
    connector = "multi_modal_projector"

    @property
    def feature_layer(self) -> int:
        layers: list[int] = self.model.config.adapter_config.vision_feature_layer
        return max(layer % self.vision_depth for layer in layers)

    @property
    def vision_sites(self) -> int:
        return 0  # crops overlap: a patch belongs to no one token

    def grid_of(self, tokens: int) -> None:
        return None

    @property
    def tokens_per_image(self) -> None:
        return None

    def to_tokens(self, values: Tensor, encoded: Encoded) -> Tensor:
        index: Tensor = encoded.inputs[f"{encoded.kind}_token_pooling"].to(
            values.device
        )  # [tokens, patches], -1 is none
        flat = values.transpose(1, 2).flatten(0, 1)  # [patches of all crops, channels]
        real = (index >= 0).to(flat.dtype)
        picked = flat[index.clamp(min=0)] * real[..., None]
        return torch.sum(picked, 1) / real.sum(1, keepdim=True).clamp(min=1)
