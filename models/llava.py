"""LLaVA-1.5 and everything that shares its architecture (`LlavaForConditionalGeneration`)."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.adapter import ModelAdapter
from prunekit.errors import UnsupportedModelError

__all__ = ["LlavaAdapter"]


class LlavaAdapter(ModelAdapter):
    """LLaVA: CLIP (or SigLIP) encoder, a two-layer projector, a Llama-like decoder.

    ```text
    LlavaForConditionalGeneration
    ├── model: LlavaModel                                core
    │   ├── vision_tower: CLIPVisionModel                vision_tower
    │   │   └── encoder.layers[i].self_attn              vision_layers
    │   ├── multi_modal_projector                        projector
    │   └── language_model: LlamaModel                   text_model
    │       └── layers[i].self_attn                      decoder_layers
    └── lm_head
    ```

    Raises:
        UnsupportedModelError: the encoder has no fixed grid of patches (Pixtral), or its [CLS] token is among the
            features.
    """

    model_types = ("llava",)

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.has_cls = hasattr(getattr(self.vision_tower, "embeddings", None), "class_embedding")
        self.prefix_tokens = int(self.has_cls)
        vision = self.model.config.vision_config
        if not isinstance(getattr(vision, "image_size", None), int) or vision.model_type == "pixtral":
            raise UnsupportedModelError(
                f"LLaVA with a {vision.model_type!r} encoder, whose images have no fixed grid of patches, is not"
                " supported;"
                " supported are encoders like CLIP and SigLIP."
            )
        if (self.model.config.vision_feature_select_strategy == "default") != self.has_cls:
            raise UnsupportedModelError(
                f"LLaVA with vision_feature_select_strategy={self.model.config.vision_feature_select_strategy!r} and a"
                f" {vision.model_type!r} encoder counts [CLS] as a visual token or drops a patch; not supported."
            )

    @property
    def core(self) -> nn.Module:
        return self.model.model if hasattr(self.model, "lm_head") else self.model  # type: ignore[no-any-return]

    @property
    def text_model(self) -> nn.Module:
        return self.core.language_model  # type: ignore[return-value]

    @property
    def vision_tower(self) -> nn.Module:
        return self.core.vision_tower  # type: ignore[return-value]

    @property
    def vision_layers(self) -> nn.ModuleList:
        tower: Any = self.vision_tower
        return tower.encoder.layers  # type: ignore[no-any-return]

    @property
    def projector(self) -> nn.Module:
        return self.core.multi_modal_projector  # type: ignore[return-value]

    @property
    def grid(self) -> tuple[int, int]:
        vision = self.model.config.vision_config
        return (vision.image_size // vision.patch_size,) * 2

    @property
    def tokens_per_image(self) -> int:
        return self.grid[0] * self.grid[1]

    @property
    def feature_layer(self) -> int | None:
        layer = self.model.config.vision_feature_layer
        if not isinstance(layer, int):
            return None
        # hidden_states[0] is the encoder's input, hidden_states[i] the output of layer i - 1
        return (layer if layer >= 0 else self.vision_depth + 1 + layer) - 1

    @property
    def image_token_id(self) -> int:
        return int(self.model.config.image_token_id)
