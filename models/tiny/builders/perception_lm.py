"""Perception LM: a ViT with [CLS], a two-layer projector and average pooling, Llama."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, VIDEO, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import vision_sizes
from prunekit.models.tiny.builders.llava import llama


def perception_lm(patch_size: int = 4, pool: int = 2, frames: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """The encoder is CLIP's, which needs no timm; the mean of `pool` x `pool` patches is a token.

    Images 1 and 2 of a prompt have a thumbnail and two or four tiles, videos `frames` frames.
    """
    from transformers import CLIPVisionConfig, PerceptionLMConfig, PerceptionLMForConditionalGeneration

    s = Sizes(**sizes)
    edge = s.side * pool * patch_size
    vision: Any = CLIPVisionConfig(**vision_sizes(s), image_size=edge, patch_size=patch_size)
    vision.model_args = {"embed_dim": s.vision_hidden}  # which the projector asks for
    config = PerceptionLMConfig(
        vision_config=vision,
        text_config=llama(s),
        vision_use_cls_token=True,
        projector_pooling_ratio=pool,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    model = random_model(PerceptionLMForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        tiles = [1, 3, 5][number % 3]
        # The processor has [images, tiles, ...], which the model flattens: so tiles may be as many as they like.
        pixels = torch.randn(tiles, 1, 3, edge, edge, generator=generator)
        return Media([IMAGE] * s.side**2 * tiles, {"pixel_values": pixels})

    def video(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, frames, 3, edge, edge, generator=generator)
        return Media([VIDEO] * s.side**2 * frames, {"pixel_values_videos": pixels})

    return model, InputMaker(s.vocab, image, video)
