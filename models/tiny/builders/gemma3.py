"""Gemma 3: SigLIP, average pooling and a linear projector, a decoder of layers with sliding windows and full ones."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import FIRST_WORD, IMAGE, SPECIAL, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes
from prunekit.models.tiny.builders.paligemma import siglip

PARAGRAPH = SPECIAL[2]
"""Two ends of lines."""


def gemma3(
    window: int = 8, full_every: int = 2, pool: int = 2, patch_size: int = 4, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Every `full_every`-th layer attends to all tokens, the others to `window`; an image to itself in both directions.

    The mean of `pool` x `pool` patches is a token. Images 1 and 2 of a prompt come with two and three crops.
    """
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration, Gemma3TextConfig

    s = Sizes(**sizes)
    edge = s.side * pool * patch_size
    text = Gemma3TextConfig(
        **decoder_sizes(s, head_dim=s.hidden // s.heads),
        query_pre_attn_scalar=s.hidden // s.heads,
        sliding_window=window,
        layer_types=["sliding_attention" if (n + 1) % full_every else "full_attention" for n in range(s.layers)],
        rope_parameters={
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1_000_000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 10_000.0},
        },
    )
    config = Gemma3Config(
        vision_config=siglip(s, edge, patch_size),
        text_config=text,
        mm_tokens_per_image=s.side**2,
        image_token_index=IMAGE,
        boi_token_index=BOI,
        eoi_token_index=EOI,
    )
    model = random_model(Gemma3ForConditionalGeneration, config, s)
    view = [PARAGRAPH, BOI, *[IMAGE] * s.side**2, EOI, PARAGRAPH]

    def image(generator: Generator, number: int) -> Media:
        crops = [0, 2, 3][number % 3]
        pixels = torch.randn(1 + crops, 3, edge, edge, generator=generator)
        words = [[FIRST_WORD], [FIRST_WORD + 1], *[[FIRST_WORD + 2]] * 3]
        tokens = [token for word in words[: 1 + crops] for token in word + view] if crops else view
        return Media(tokens, {"pixel_values": pixels})

    def token_types(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return {"token_type_ids": (ids == IMAGE).long()}

    return model, InputMaker(s.vocab, image, extras=token_types)
