"""Ovis 2: visual tokens are mixtures of the rows of a visual vocabulary."""

from __future__ import annotations

from torch import nn

from prunekit.adapter import ModelAdapter

__all__ = ["Ovis2Adapter"]


class Ovis2Adapter(ModelAdapter):
    """AIMv2, 2 x 2 patches a token, a softmax over the visual vocabulary, and Qwen 2.

    The marks between tiles are text to the session: they are never dropped. The model is handed tiles, not images, so
    that budgets per image are budgets per tile.
    """

    model_types = ("ovis2",)
    encoder = "vision_tower"
    encoder_layers = "transformer.encoder.layers"
    encoder_attention = "attention"
    connector = "visual_embeddings_table"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.merge = int(self.model.config.vision_config.hidden_stride)

    @property
    def connector_site(self) -> bool:
        """False: the visual vocabulary is looked up, and is given no features."""
        return False
