"""LLaVA-1.5 and everything that shares its architecture (`LlavaForConditionalGeneration`)."""

from __future__ import annotations

from torch import nn

from prunekit.adapter import ModelAdapter

__all__ = ["LlavaAdapter"]


class LlavaAdapter(ModelAdapter):
    """LLaVA: CLIP (SigLIP, Pixtral) encoder, a two-layer projector, a Llama-like decoder.

    ```text
    LlavaForConditionalGeneration
    ├── model: LlavaModel                                core
    │   ├── vision_tower: CLIPVisionModel                encoder
    │   │   └── encoder.layers[i].self_attn              encoder_layers
    │   ├── multi_modal_projector                        connector
    │   └── language_model: LlamaModel                   text_model
    │       └── layers[i].self_attn                      decoder_layers
    └── lm_head
    ```

    Raises:
        UnsupportedModelError: its encoder's [CLS] token is among the features.
    """

    model_types = ("llava",)
    encoder = "vision_tower"
    connector = "multi_modal_projector"

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        config = self.model.config
        if config.vision_config.model_type == "pixtral":
            self.packed, self.encoder_layers, self.encoder_attention = True, "transformer.layers", "attention"
            return
        self.has_cls = hasattr(getattr(self.vision_tower, "embeddings", None), "class_embedding")
        self.prefix_tokens = int(self.has_cls)
        if (config.vision_feature_select_strategy == "default") != self.has_cls:
            raise self._refusal(
                f"vision_feature_select_strategy={config.vision_feature_select_strategy!r} with a"
                f" {config.vision_config.model_type!r} encoder counts [CLS] as a visual token or drops a patch"
            )
