"""ViP-LLaVA: several layers of CLIP side by side, a normalization and a two-layer projector, Llama."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.llava import llama
from prunekit.models.tiny.builders.llava_next import clip


def vipllava(
    patch_size: int = 4, vision_layers: int = 4, features: tuple[int, ...] = (-2, -3, 1), **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Images of side^2 patches, one visual token each; `features` are the hidden states of CLIP that are used."""
    from transformers import VipLlavaConfig, VipLlavaForConditionalGeneration

    s = Sizes(**sizes, vision_layers=vision_layers)
    tokens, edge = s.side**2, s.side * patch_size
    used: dict[str, Any] = {"vision_feature_layers": list(features)}  # transformers 5.23 drops the s, and takes both
    config = VipLlavaConfig(
        vision_config=clip(s, edge, patch_size),
        text_config=llama(s),
        image_token_index=IMAGE,
        image_seq_length=tokens,
        **used,
    )
    model = random_model(VipLlavaForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, 3, edge, edge, generator=generator)
        return Media([IMAGE] * tokens, {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)
