"""SmolVLM: like Idefics 3, and videos as series of images with timestamps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import FIRST_WORD, IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import vision_sizes
from prunekit.models.tiny.builders.idefics3 import NEWLINE, PARAGRAPH, padded, tiled, whole
from prunekit.models.tiny.builders.llava import llama


def smolvlm(patch_size: int = 4, scale: int = 2, frames: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """See `idefics3`; a video has `frames` images, whose placeholders and pixels are those of images."""
    from transformers import SmolVLMConfig, SmolVLMForConditionalGeneration, SmolVLMVisionConfig

    s = Sizes(**sizes)
    edge = s.side * scale * patch_size
    config = SmolVLMConfig(
        vision_config=SmolVLMVisionConfig(**vision_sizes(s), image_size=edge, patch_size=patch_size),
        text_config=llama(s),
        image_token_id=IMAGE,
        scale_factor=scale,
    )
    model = random_model(SmolVLMForConditionalGeneration, config, s)

    def video(generator: Generator, number: int) -> Media:
        tokens = [FIRST_WORD, FIRST_WORD + 1]
        for frame in range(frames):
            tokens += [NEWLINE, FIRST_WORD + 2 + frame % 2, *whole(s)]
        pixels = torch.randn(frames, 3, edge, edge, generator=generator)
        return Media([*tokens, PARAGRAPH], {"pixel_values": pixels})

    return model, InputMaker(s.vocab, tiled(s, edge), video, join=padded)
