"""Cosmos 3 (its reasoner): the ViT, DeepStack and the language model of Qwen3-VL under a configuration of its own."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.models.tiny.builders.common import InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.qwen2_vl import placeholders
from prunekit.models.tiny.builders.qwen3_vl import encoder, inputs, language, taps


def cosmos3_omni(patch_size: int = 2, deepstack: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Features of `deepstack` vision layers are added after the first decoder layers."""
    from transformers import Cosmos3OmniConfig, Cosmos3OmniForConditionalGeneration
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig

    s = Sizes(**sizes)
    config = Cosmos3OmniConfig(
        vision_config=Qwen3VLVisionConfig(**encoder(s, patch_size), deepstack_visual_indexes=taps(s, deepstack)),
        text_config=Qwen3VLTextConfig(**language(s)),
        **placeholders(),
    )
    return random_model(Cosmos3OmniForConditionalGeneration, config, s), inputs(s, patch_size)
