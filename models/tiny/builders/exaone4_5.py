"""EXAONE 4.5: the encoder of Qwen2.5-VL with shared keys, EXAONE 4, whose layers have windows or else no positions."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.models.tiny.builders.common import InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.qwen2_5_vl import encoder
from prunekit.models.tiny.builders.qwen2_vl import decoder, images, placeholders, videos


def exaone4_5(
    patch_size: int = 2, window: int | None = None, vision_layers: int = 4, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Every fourth layer (the last of fewer) sees everything, the others `window` tokens (one and a half images)."""
    from transformers import Exaone4_5_Config, Exaone4_5_ForConditionalGeneration, Exaone4Config
    from transformers.models.exaone4_5.configuration_exaone4_5 import Exaone4_5_VisionConfig

    s = Sizes(**sizes, vision_layers=vision_layers)
    vision = Exaone4_5_VisionConfig(**encoder(s, patch_size), num_key_value_heads=max(1, s.vision_heads // 2))
    text = Exaone4Config(
        **decoder(s),
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        sliding_window=window or 3 * s.side**2 // 2,
        sliding_window_pattern=min(4, s.layers),
    )
    config = Exaone4_5_Config(vision_config=vision, text_config=text, **placeholders())
    patch = [3 * 2 * patch_size**2]
    model = random_model(Exaone4_5_ForConditionalGeneration, config, s)
    return model, InputMaker(s.vocab, images(s, patch), videos(s, patch))
