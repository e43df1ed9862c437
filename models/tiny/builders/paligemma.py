"""PaliGemma: SigLIP, a linear projector, Gemma 2 (or 1) that sees the whole prompt in both directions."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes


def paligemma(gemma: int = 2, window: int = 8, patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Every other layer of Gemma 2 (PaliGemma 2) has a sliding window of `window` tokens; `gemma=1` has none.

    The attention of Gemma 2 is "eager" where "sdpa" is asked for, which it does not support.
    """
    from transformers import Gemma2Config, GemmaConfig, PaliGemmaConfig, PaliGemmaForConditionalGeneration

    s = Sizes(**sizes)
    edge = s.side * patch_size
    arguments = decoder_sizes(s, head_dim=s.hidden // s.heads)
    text: Any = (
        GemmaConfig(**arguments)
        if gemma == 1
        else Gemma2Config(**arguments, query_pre_attn_scalar=s.hidden // s.heads, sliding_window=window)
    )
    config = PaliGemmaConfig(
        vision_config=siglip(s, edge, patch_size),
        text_config=text,
        image_token_index=IMAGE,
        vocab_size=s.vocab,
        hidden_size=s.hidden,
        projection_dim=s.hidden,
    )
    attention: Any = s.attn_implementation
    if gemma != 1 and attention == "sdpa":
        attention = {"": "sdpa", "vision_config": "sdpa", "text_config": "eager"}
    model = random_model(PaliGemmaForConditionalGeneration, config, replace(s, attn_implementation=attention))

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, 3, edge, edge, generator=generator)
        return Media([IMAGE] * s.side**2, {"pixel_values": pixels})

    def token_types(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": torch.zeros_like(ids)}

    return model, InputMaker(s.vocab, image, extras=token_types)


def siglip(s: Sizes, image_size: int, patch_size: int) -> Any:
    """A SigLIP encoder of these sizes, without its pooling head."""
    from transformers import SiglipVisionConfig

    return SiglipVisionConfig(**vision_sizes(s), image_size=image_size, patch_size=patch_size, vision_use_head=False)
