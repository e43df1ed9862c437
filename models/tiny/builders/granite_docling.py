"""Granite Docling: SigLIP on tiles, pixel shuffle at two scales, DeepStack, a router between the scales, Granite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders import idefics3
from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes
from prunekit.models.tiny.builders.idefics3 import AROUND, NEWLINE, TILES, whole
from prunekit.models.tiny.builders.qwen3_vl import taps


def granite_docling(
    patch_size: int = 4, scale: int = 2, deepstack: int = 2, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Blocks of `scale` x `scale` patches are a token; images 1 and 2 of a prompt have two tiles and a thumbnail.

    Features of `deepstack` encoder layers are added behind as many of the first decoder layers. Prompts take the coarse
    scale; the fine one, of half the blocks, makes four times as many tokens.
    """
    from transformers import GraniteDoclingConfig, GraniteDoclingForConditionalGeneration
    from transformers.models.granite_docling.configuration_granite_docling import (
        GraniteDoclingTextConfig,
        GraniteDoclingVisionConfig,
    )

    s = Sizes(**sizes)
    edge = s.side * scale * patch_size
    vision = GraniteDoclingVisionConfig(
        **vision_sizes(s),
        image_size=edge,
        patch_size=patch_size,
        out_hidden_size=s.hidden,
        scale_factor=scale,
        deepstack_visual_indexes=taps(s, deepstack),
    )
    config = GraniteDoclingConfig(
        vision_config=vision,
        text_config=GraniteDoclingTextConfig(**granite(s)),
        image_token_id=IMAGE,
        density_router_hidden_size=s.vision_hidden,
        tie_word_embeddings=False,
    )
    model = random_model(GraniteDoclingForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        rows, columns = [(1, 1), (1, 2), (2, 1)][number % 3]
        tokens: list[int] = []
        for row in range(rows):
            for column in range(columns):
                tokens += [AROUND, TILES[2 * row + column], *[IMAGE] * s.side**2]
            tokens.append(NEWLINE)
        several = rows * columns > 1
        tokens += [NEWLINE, *whole(s)] if several else []
        pixels = torch.randn(rows * columns + several, 3, edge, edge, generator=generator)
        return Media(tokens, {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image, join=padded)


def granite(s: Sizes) -> dict[str, Any]:
    """A Granite of these sizes, which scales embeddings, branches, attention and logits as Granite Docling's does."""
    head_dim = s.hidden // s.heads
    return decoder_sizes(
        s,
        embedding_multiplier=12.0,
        residual_multiplier=0.263,
        attention_multiplier=1 / head_dim,
        logits_scaling=4.0,
        tie_word_embeddings=False,
    )


def padded(media: list[list[Media]]) -> dict[str, Tensor]:
    """Pixels as of Idefics 3, [rows, tiles, channels, height, width], and which tiles are real, [rows, tiles]."""
    inputs = idefics3.padded(media)
    return inputs | {"pixel_attention_mask": inputs["pixel_attention_mask"][..., 0, 0].bool()}
