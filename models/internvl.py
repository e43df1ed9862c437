"""InternVL (2.5, 3, 3.5), as `InternVLForConditionalGeneration`."""

from __future__ import annotations

from torch import nn

from prunekit.adapter import ModelAdapter

__all__ = ["InternVLAdapter"]


class InternVLAdapter(ModelAdapter):
    """InternViT with [CLS], a pixel shuffle of 2 x 2 patches, and Qwen or Llama.

    The model is handed tiles, not images, so that budgets per image are budgets per tile. Videos are images.
    """

    model_types = ("internvl",)
    encoder = "vision_tower"
    encoder_layers = "encoder.layer"
    encoder_attention = "attention"
    connector = "multi_modal_projector"
    prefix_tokens = 1
    has_cls = True

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.merge = round(1 / self.model.config.downsample_ratio)

    @property
    def tokens_per_image(self) -> int:
        vision = self.model.config.vision_config
        (height, width), (rows, columns) = vision.image_size, vision.patch_size
        return int(height // rows // self.merge) * int(width // columns // self.merge)

    @property
    def feature_layer(self) -> int:
        layer = self.model.config.vision_feature_layer
        return super().feature_layer if layer != -1 else self.vision_depth - 1
