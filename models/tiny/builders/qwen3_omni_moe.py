"""Qwen3-Omni (its thinker): the ViT of Qwen3-VL with DeepStack, an audio encoder, a Qwen3 mixture of experts."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.models.tiny.builders.common import IMAGE, VIDEO, InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.qwen2_5_omni import AUDIO, SOUND, audio, inputs, marks
from prunekit.models.tiny.builders.qwen3_vl import encoder, language, taps


def qwen3_omni_moe(
    patch_size: int = 2, deepstack: int = 2, experts: int = 4, experts_per_token: int = 2, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Vision and decoder as in `qwen3_vl_moe`. Behind every second image of a prompt someone speaks."""
    from transformers import Qwen3OmniMoeThinkerConfig, Qwen3OmniMoeThinkerForConditionalGeneration
    from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
        Qwen3OmniMoeAudioEncoderConfig,
        Qwen3OmniMoeTextConfig,
        Qwen3OmniMoeVisionEncoderConfig,
    )

    s = Sizes(**sizes)
    text = Qwen3OmniMoeTextConfig(
        **language(s),
        moe_intermediate_size=max(1, s.intermediate // 2),
        num_experts=experts,
        num_experts_per_tok=experts_per_token,
        mlp_only_layers=[s.layers - 1] if s.layers > 1 else [],
    )
    config = Qwen3OmniMoeThinkerConfig(
        vision_config=Qwen3OmniMoeVisionEncoderConfig(
            **encoder(s, patch_size), deepstack_visual_indexes=taps(s, deepstack)
        ),
        audio_config=Qwen3OmniMoeAudioEncoderConfig(**audio(s), downsample_hidden_size=s.vision_hidden),
        text_config=text,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        **marks(),
    )
    model = random_model(Qwen3OmniMoeThinkerForConditionalGeneration, config, s)
    return model, inputs(s, [3 * 2 * patch_size**2], sound=SOUND[1] // 8)
