"""LightOnOCR: Pixtral's encoder for images of any size, 2 x 2 merging, Qwen3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes


def lighton_ocr(patch_size: int = 4, merge: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Images 1 and 2 of a prompt are lower and narrower than the default one; all are padded to the same size."""
    from transformers import LightOnOcrConfig, LightOnOcrForConditionalGeneration, PixtralVisionConfig, Qwen3Config

    s = Sizes(**sizes)
    unit = merge * patch_size
    edge = s.side * unit
    config = LightOnOcrConfig(
        vision_config=PixtralVisionConfig(
            **vision_sizes(s),
            image_size=edge,
            patch_size=patch_size,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        text_config=Qwen3Config(**decoder_sizes(s, head_dim=s.hidden // s.heads)),
        spatial_merge_size=merge,
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    model = random_model(LightOnOcrForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        rows, columns = [(s.side, s.side), (s.side // 2, s.side), (s.side, s.side - 1)][number % 3]
        pixels = torch.zeros(1, 3, edge, edge)
        pixels[..., : rows * unit, : columns * unit] = torch.randn(
            1, 3, rows * unit, columns * unit, generator=generator
        )
        sizes = torch.tensor([[rows * unit, columns * unit]])
        return Media([IMAGE] * (rows * columns), {"pixel_values": pixels, "image_sizes": sizes})

    return model, InputMaker(s.vocab, image)
