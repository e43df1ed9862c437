"""DeepSeek-VL: SigLIP, a two-layer aligner, Llama."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.llava import llama
from prunekit.models.tiny.builders.paligemma import siglip


def deepseek_vl(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Images of side^2 patches, one visual token each."""
    from transformers import DeepseekVLConfig, DeepseekVLForConditionalGeneration

    s = Sizes(**sizes)
    tokens, edge = s.side**2, s.side * patch_size
    config = DeepseekVLConfig(
        vision_config=siglip(s, edge, patch_size),
        text_config=llama(s),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    model = random_model(DeepseekVLForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, 3, edge, edge, generator=generator)
        return Media([IMAGE] * tokens, {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)
