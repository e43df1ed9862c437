"""Qwen2-VL: a ViT over packed patches whose 2 x 2 neighbours are merged, Qwen2 with multimodal RoPE; what kin share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import (
    BOS,
    EOS,
    IMAGE,
    PAD,
    SPECIAL,
    VIDEO,
    InputMaker,
    Media,
    MediaMaker,
    Sizes,
    random_model,
)

START, END = SPECIAL[:2]
"""Ids around an image or video."""


def qwen2_vl(patch_size: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Images of `side` x `side` and other numbers of visual tokens, each made of 2 x 2 patches of `patch_size`."""
    from transformers import Qwen2VLConfig, Qwen2VLForConditionalGeneration
    from transformers.models.qwen2_vl.configuration_qwen2_vl import Qwen2VLTextConfig, Qwen2VLVisionConfig

    s = Sizes(**sizes)
    vision = Qwen2VLVisionConfig(
        depth=s.vision_layers,
        embed_dim=s.vision_hidden,
        num_heads=s.vision_heads,
        mlp_ratio=2,
        hidden_size=s.hidden,
        patch_size=patch_size,
    )
    text = Qwen2VLTextConfig(**decoder(s), rope_parameters=rope(mrope(s)))
    config = Qwen2VLConfig(vision_config=vision, text_config=text, **placeholders())
    patch = [3 * 2 * patch_size**2]
    model = random_model(Qwen2VLForConditionalGeneration, config, s)
    return model, InputMaker(s.vocab, images(s, patch), videos(s, patch), extras=token_types)


def decoder(s: Sizes) -> dict[str, Any]:
    """What the configurations of all language models call these sizes."""
    return {
        "vocab_size": s.vocab,
        "hidden_size": s.hidden,
        "intermediate_size": s.intermediate,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.key_heads,
        "max_position_embeddings": 8192,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }


def placeholders(start: str = "vision_start_token_id", end: str = "vision_end_token_id") -> dict[str, Any]:
    """Ids of the tokens that stand for visual tokens, and of those around them."""
    return {"image_token_id": IMAGE, "video_token_id": VIDEO, start: START, end: END}


def mrope(s: Sizes, share: float = 3 / 8, rotated: float = 1.0) -> list[int]:
    """Rotary frequencies for time, height and width.

    Args:
        share: of the frequencies that height and width each have.
        rotated: share of a head's channels that are rotated.
    """
    frequencies = int(s.hidden // s.heads * rotated) // 2
    each = max(1, int(frequencies * share))
    return [frequencies - 2 * each, each, each]


def rope(sections: list[int], **more: Any) -> dict[str, Any]:
    """Parameters of a multimodal RoPE with these sections."""
    return {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections, **more}


def image_shape(s: Sizes, number: int) -> tuple[int, int]:
    """Height and width of the n-th image in visual tokens: square, wide, or a little higher than wide."""
    shapes = [(s.side, s.side), (max(1, s.side // 2), s.side + s.side // 2), (s.side + 1, max(1, s.side - 1))]
    return shapes[number % 3]


def video_shape(s: Sizes, number: int) -> tuple[int, int, int]:
    """Frames (two, or three), height and width of the n-th video in visual tokens."""
    return 2 + number % 2, max(1, s.side // 2), max(1, s.side // 2)


def pixels(
    generator: Generator, tokens: tuple[int, int, int], patch: Sequence[int], merge: int = 2, kind: str = "image"
) -> dict[str, Tensor]:
    """Patches of shape `patch` for an image or video of frames x height x width visual tokens, and their grid."""
    frames, height, width = tokens
    grid = [frames, height * merge, width * merge]
    name = {"image": "pixel_values", "video": "pixel_values_videos"}[kind]
    return {
        name: torch.randn(math.prod(grid), *patch, generator=generator),
        f"{kind}_grid_thw": torch.tensor([grid]),
    }


def images(s: Sizes, patch: Sequence[int]) -> MediaMaker:
    """A maker of images of several sizes, between `START` and `END`."""

    def image(generator: Generator, number: int) -> Media:
        height, width = image_shape(s, number)
        tokens = [START, *[IMAGE] * (height * width), END]
        return Media(tokens, pixels(generator, (1, height, width), patch))

    return image


def videos(s: Sizes, patch: Sequence[int]) -> MediaMaker:
    """The same for videos, whose frames follow each other without anything between them."""

    def video(generator: Generator, number: int) -> Media:
        frames, height, width = video_shape(s, number)
        tokens = [START, *[VIDEO] * (frames * height * width), END]
        return Media(tokens, pixels(generator, (frames, height, width), patch, kind="video"))

    return video


def token_types(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Zero for text, one for tokens of images, two for those of videos."""
    return {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO)}
