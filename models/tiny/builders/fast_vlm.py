"""FastVLM: a hybrid of convolutions and attention, a two-layer projector, Qwen 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.ovis2 import qwen2


def fast_vlm(**sizes: Any) -> tuple[nn.Module, InputMaker]:
    """The encoder is SegFormer's, which needs no timm; like FastViT it returns a map of [channels, rows, columns].

    Its last stage has the vision encoder's sizes, and one of half the width with a single layer comes before it; a
    visual token is eight pixels wide and high.
    """
    from transformers import FastVlmConfig, FastVlmForConditionalGeneration, SegformerConfig

    s = Sizes(**sizes)
    edge = 8 * s.side
    vision: Any = SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, s.vision_layers],
        hidden_sizes=[s.vision_hidden // 2, s.vision_hidden],
        num_attention_heads=[1, s.vision_heads],
        patch_sizes=[7, 3],
        strides=[4, 2],
        sr_ratios=[2, 1],
        mlp_ratios=[2, 2],
    )
    vision.hidden_size = s.vision_hidden  # which the projector asks for
    config = FastVlmConfig(
        vision_config=vision, text_config=qwen2(s), image_token_index=IMAGE, image_seq_length=s.side**2
    )
    model = random_model(FastVlmForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, 3, edge, edge, generator=generator)
        return Media([IMAGE] * s.side**2, {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)
