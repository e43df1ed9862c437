"""Cohere Compass: a ViT with learned and rotary positions, 2 x 2 merging, DeepStack, Cohere2 with multimodal RoPE."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.models.tiny.builders.common import InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.qwen2_vl import decoder, mrope, placeholders, rope
from prunekit.models.tiny.builders.qwen3_vl import encoder, inputs, taps


def cohere_compass(
    patch_size: int = 2, window: int | None = None, deepstack: int = 2, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Features of `deepstack` vision layers are added after the first decoder layers.

    Every fourth layer (the last of fewer) sees everything and has no positions, the others see `window` tokens (one
    and a half images).
    """
    from transformers import CohereCompassConfig, CohereCompassForConditionalGeneration
    from transformers.models.cohere_compass.configuration_cohere_compass import (
        CohereCompassTextConfig,
        CohereCompassVisionConfig,
    )

    s = Sizes(**sizes)
    period = min(4, s.layers)
    text = CohereCompassTextConfig(
        **decoder(s),
        layer_types=["sliding_attention" if layer % period else "full_attention" for layer in range(1, s.layers + 1)],
        sliding_window=window or 3 * s.side**2 // 2,
        rope_parameters={"sliding_attention": rope(mrope(s, share=5 / 16)), "full_attention": None},
    )
    vision = CohereCompassVisionConfig(**encoder(s, patch_size), deepstack_visual_indexes=taps(s, deepstack))
    config = CohereCompassConfig(vision_config=vision, text_config=text, **placeholders())
    return random_model(CohereCompassForConditionalGeneration, config, s), inputs(s, patch_size)
