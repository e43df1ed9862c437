"""Qwen3.5: the ViT of Qwen3-VL without DeepStack, a decoder of gated delta nets with full attention in between."""

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
    every = min(full_every, s.layers)
    sections = mrope(s, share=5 / 16, rotated=ROTATED)
    text = Qwen3_5TextConfig(
        **decoder(s),
        head_dim=s.hidden // s.heads,
        rope_parameters=rope(sections, mrope_interleaved=True, partial_rotary_factor=ROTATED),
        layer_types=["linear_attention" if (n + 1) % every else "full_attention" for n in range(s.layers)],
        linear_conv_kernel_dim=convolution,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=s.key_heads,
        linear_num_value_heads=s.heads,
    )
    config = Qwen3_5Config(
        vision_config=Qwen3_5VisionConfig(**encoder(s, patch_size)), text_config=text, **placeholders()
    )
    model: Any = random_model(Qwen3_5ForConditionalGeneration, config, s)
    with torch.no_grad():
        for layer in model.model.language_model.layers:
            if layer.block_type == "linear_attention":
                layer.linear_attn.A_log.uniform_(-4, -1)  # many tokens are remembered, and little is lost in rounding
    return model, inputs(s, patch_size)
