"""Qwen3.5: the ViT of Qwen3-VL without DeepStack, gated delta nets, full attention in between, dense or experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunekit.models.tiny.builders.common import InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.qwen2_vl import decoder, mrope, placeholders, rope
from prunekit.models.tiny.builders.qwen3_vl import encoder, inputs

ROTATED = 0.25
"""Share of a head's channels that are rotated."""


def qwen3_5(
    patch_size: int = 2, full_every: int = 4, convolution: int = 4, hidden: int = 128, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Every `full_every`-th decoder layer has attention; the others are recurrent, after a short `convolution`.

    By default a head has 32 channels, eight of which are rotated: so time, height and width all have frequencies.
    """
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration
    from transformers.models.qwen3_5.configuration_qwen3_5 import Qwen3_5TextConfig, Qwen3_5VisionConfig

    s = Sizes(**sizes, hidden=hidden)
    text = Qwen3_5TextConfig(**language(s, full_every, convolution))
    vision = Qwen3_5VisionConfig(**encoder(s, patch_size))
    config = Qwen3_5Config(vision_config=vision, text_config=text, **placeholders())
    return remembering(random_model(Qwen3_5ForConditionalGeneration, config, s)), inputs(s, patch_size)


def qwen3_5_moe(
    patch_size: int = 2, full_every: int = 4, convolution: int = 4, hidden: int = 128, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """As `qwen3_5`, with experts in all decoder layers."""
    from transformers import Qwen3_5MoeConfig, Qwen3_5MoeForConditionalGeneration
    from transformers.models.qwen3_5_moe.configuration_qwen3_5_moe import Qwen3_5MoeTextConfig, Qwen3_5MoeVisionConfig

    s = Sizes(**sizes, hidden=hidden)
    text = Qwen3_5MoeTextConfig(**language(s, full_every, convolution), **experts(s))
    vision = Qwen3_5MoeVisionConfig(**encoder(s, patch_size))
    config = Qwen3_5MoeConfig(vision_config=vision, text_config=text, **placeholders())
    return remembering(random_model(Qwen3_5MoeForConditionalGeneration, config, s)), inputs(s, patch_size)


def language(s: Sizes, full_every: int, convolution: int) -> dict[str, Any]:
    """A decoder of gated delta nets, with attention and interleaved multimodal RoPE in every `full_every`-th layer."""
    every = min(full_every, s.layers)
    sections = mrope(s, share=5 / 16, rotated=ROTATED)
    return {
        **decoder(s),
        "head_dim": s.hidden // s.heads,
        "rope_parameters": rope(sections, mrope_interleaved=True, partial_rotary_factor=ROTATED),
        "layer_types": ["linear_attention" if (n + 1) % every else "full_attention" for n in range(s.layers)],
        "linear_conv_kernel_dim": convolution,
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": s.key_heads,
        "linear_num_value_heads": s.heads,
    }


def experts(s: Sizes) -> dict[str, Any]:
    """Four experts, two of which work on a token, and one that works on all."""
    size = max(1, s.intermediate // 2)
    return {
        "moe_intermediate_size": size,
        "shared_expert_intermediate_size": size,
        "num_experts": 4,
        "num_experts_per_tok": 2,
    }


def remembering(model: nn.Module) -> nn.Module:
    """Make recurrent layers forget slowly: they remember many tokens, and little is lost in rounding."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("A_log"):
                parameter.uniform_(-4, -1)
    return model
