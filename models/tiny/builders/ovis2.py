"""Ovis 2: a ViT whose patches choose softly from a visual vocabulary, the table of its embeddings, Qwen 2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, SPECIAL, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes

START, GRID, COLUMN, ROW, END = SPECIAL[:5]
"""Marks whose embeddings come from the visual vocabulary, too."""


def ovis2(patch_size: int = 4, stride: int = 2, visual_vocab: int = 64, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Blocks of `stride` x `stride` patches are a token.

    Images 1 and 2 of a prompt are followed by their two tiles, side by side and one below the other.
    """
    from transformers import Ovis2Config, Ovis2ForConditionalGeneration
    from transformers.models.ovis2.configuration_ovis2 import Ovis2VisionConfig

    s = Sizes(**sizes)
    edge = s.side * stride * patch_size
    vision = Ovis2VisionConfig(
        **vision_sizes(s), image_size=edge, patch_size=patch_size, hidden_stride=stride, vocab_size=visual_vocab
    )
    config = Ovis2Config(
        vision_config=vision,
        text_config=qwen2(s),
        image_token_id=IMAGE,
        visual_indicator_token_ids=[START, GRID, COLUMN, ROW, END],
        vocab_size=s.vocab,
        hidden_size=s.hidden,
    )
    model = random_model(Ovis2ForConditionalGeneration, config, s)
    visual = [IMAGE] * s.side**2

    def image(generator: Generator, number: int) -> Media:
        mark = [None, COLUMN, ROW][number % 3]
        tiles = [*visual, mark, *visual] if mark is not None else []
        pixels = torch.randn(3 if tiles else 1, 3, edge, edge, generator=generator)
        return Media([START, *visual, GRID, *tiles, END], {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)


def qwen2(s: Sizes) -> Any:
    """A Qwen 2 of these sizes."""
    from transformers import Qwen2Config

    return Qwen2Config(**decoder_sizes(s))
