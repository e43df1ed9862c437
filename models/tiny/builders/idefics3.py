"""Idefics 3: a SigLIP-like encoder for images of any shape, pixel shuffle, a linear projector, Llama."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from prunekit.models.tiny.builders.common import IMAGE, SPECIAL, InputMaker, Media, MediaMaker, Sizes, random_model
from prunekit.models.tiny.builders.decoders import vision_sizes
from prunekit.models.tiny.builders.llava import llama

AROUND, WHOLE, NEWLINE, PARAGRAPH = SPECIAL[:4]
"""Marks around images, of the whole image, and ends of lines."""
TILES = SPECIAL[4:8]
"""Marks of tiles, for grids of up to 2 x 2."""


def idefics3(patch_size: int = 4, scale: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Blocks of `scale` x `scale` patches are a token; images 1 and 2 of a prompt have two tiles besides."""
    from transformers import Idefics3Config, Idefics3ForConditionalGeneration, Idefics3VisionConfig

    s = Sizes(**sizes)
    edge = s.side * scale * patch_size
    config = Idefics3Config(
        vision_config=Idefics3VisionConfig(**vision_sizes(s), image_size=edge, patch_size=patch_size),
        text_config=llama(s),
        image_token_id=IMAGE,
        scale_factor=scale,
    )
    model = random_model(Idefics3ForConditionalGeneration, config, s)
    return model, InputMaker(s.vocab, tiled(s, edge), join=padded)


def whole(s: Sizes) -> list[int]:
    """What the prompt has for an image that is not cut into tiles."""
    return [AROUND, WHOLE, *[IMAGE] * s.side**2, AROUND]


def tiled(s: Sizes, edge: int) -> MediaMaker:
    """Makes images of no tiles, of two side by side, and of two one below the other; all are `edge` wide and high."""

    def image(generator: Generator, number: int) -> Media:
        rows, columns = [(0, 0), (1, 2), (2, 1)][number % 3]
        tokens: list[int] = []
        for row in range(rows):
            for column in range(columns):
                tokens += [AROUND, TILES[2 * row + column], *[IMAGE] * s.side**2]
            tokens.append(PARAGRAPH if row == rows - 1 else NEWLINE)
        pixels = torch.randn(rows * columns + 1, 3, edge, edge, generator=generator)
        return Media(tokens + whole(s), {"pixel_values": pixels})

    return image


def padded(media: list[list[Media]]) -> dict[str, Tensor]:
    """Pixels of [rows, images, channels, height, width], filled up with images of zeros, and their mask."""
    pixels = [[item.tensors["pixel_values"] for item in row] for row in media]
    none = next(image for row in pixels for image in row)[:0]
    rows = [torch.cat([none, *row]) for row in pixels]
    masks = [torch.ones_like(row[:, 0], dtype=torch.long) for row in rows]
    return {
        "pixel_values": pad_sequence(rows, batch_first=True),
        "pixel_attention_mask": pad_sequence(masks, batch_first=True),
    }
