"""Mistral3: Pixtral's encoder for images of any size in one sequence, 2 x 2 merging, a projector, Mistral."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, SPECIAL, InputMaker, Media, MediaMaker, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes
from prunekit.models.tiny.builders.llava_next import padded

BREAK, END = SPECIAL[:2]
"""What is written after each line of an image, and after the last one."""


def mistral3(patch_size: int = 4, merge: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Images 1 and 2 of a prompt are lower and narrower than the default one."""
    from transformers import Mistral3Config, Mistral3ForConditionalGeneration, MistralConfig, PixtralVisionConfig

    s = Sizes(**sizes)
    unit = merge * patch_size
    config = Mistral3Config(
        vision_config=PixtralVisionConfig(**vision_sizes(s), image_size=s.side * unit, patch_size=patch_size),
        text_config=MistralConfig(**decoder_sizes(s), head_dim=s.hidden // s.heads, sliding_window=None),
        image_token_index=IMAGE,
        spatial_merge_size=merge,
        tie_word_embeddings=False,
    )
    return random_model(Mistral3ForConditionalGeneration, config, s), InputMaker(s.vocab, images(s, unit), join=padded)


def images(s: Sizes, unit: int) -> MediaMaker:
    """A maker of images of several sizes, whose visual tokens are made of `unit` x `unit` pixels."""

    def image(generator: Generator, number: int) -> Media:
        rows, columns = [(s.side, s.side), (s.side // 2, s.side), (s.side, s.side - 1)][number % 3]
        pixels = torch.randn(1, 3, rows * unit, columns * unit, generator=generator)
        tokens = ([IMAGE] * columns + [BREAK]) * rows
        size = torch.tensor([[rows * unit, columns * unit]])
        return Media([*tokens[:-1], END], {"pixel_values": pixels, "image_sizes": size})

    return image
