"""LFM2-VL: SigLIP 2 for images of any shape, pixel unshuffle, LFM2 (layers of short convolutions and of attention)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import IMAGE, SPECIAL, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes, vision_sizes

THUMBNAIL, LEFT, RIGHT = SPECIAL[2:5]
"""Marks of the small image and of tiles."""


def lfm2_vl(
    patch_size: int = 4, factor: int = 2, attention_every: int = 2, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Every `attention_every`-th layer is attention, the others are convolutions; `factor` x `factor` patches a token.

    Image 1 of a prompt is wider than high, image 2 has two tiles and a thumbnail.
    """
    from transformers import Lfm2Config, Lfm2VlConfig, Lfm2VlForConditionalGeneration, Siglip2VisionConfig

    s = Sizes(**sizes)
    most = (s.side * factor) ** 2
    text = Lfm2Config(
        **decoder_sizes(s),
        block_auto_adjust_ff_dim=False,
        layer_types=["conv" if (n + 1) % attention_every else "full_attention" for n in range(s.layers)],
    )
    config = Lfm2VlConfig(
        vision_config=Siglip2VisionConfig(
            **vision_sizes(s), num_patches=most, patch_size=patch_size, vision_use_head=False
        ),
        text_config=text,
        image_token_id=IMAGE,
        projector_hidden_size=2 * s.hidden,
        downsample_factor=factor,
    )
    model = random_model(Lfm2VlForConditionalGeneration, config, s)

    def view(generator: Generator, rows: int, columns: int) -> dict[str, Tensor]:
        patches = rows * columns * factor**2
        pixels = torch.zeros(1, most, 3 * patch_size**2)
        pixels[:, :patches] = torch.randn(1, patches, 3 * patch_size**2, generator=generator)
        return {
            "pixel_values": pixels,
            "pixel_attention_mask": (torch.arange(most) < patches).long()[None],
            "spatial_shapes": torch.tensor([[rows * factor, columns * factor]]),
        }

    def image(generator: Generator, number: int) -> Media:
        square, wide = (s.side, s.side), (s.side - 1, s.side + 1)
        shapes = [[square], [wide], [square, square, wide]][number % 3]
        tokens: list[int] = []
        for mark, (rows, columns) in zip((LEFT, RIGHT, THUMBNAIL), shapes, strict=False):
            tokens += [mark] if len(shapes) > 1 else []
            tokens += [IMAGE] * rows * columns
        views = [view(generator, *shape) for shape in shapes]
        return Media([BOI, *tokens, EOI], {name: torch.cat([each[name] for each in views]) for name in views[0]})

    return model, InputMaker(s.vocab, image)
