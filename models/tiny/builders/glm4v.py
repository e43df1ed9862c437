"""GLM-4.1V and GLM-4.5V: a ViT with interpolated positions, 2 x 2 convolution, GLM, dense or a mixture of experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import FIRST_WORD, IMAGE, SPECIAL, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.qwen2_vl import (
    END,
    START,
    decoder,
    images,
    mrope,
    pixels,
    placeholders,
    rope,
    video_shape,
)

VIDEO_START, VIDEO_END = SPECIAL[2:4]
ROTATED = 0.5
"""Share of a head's channels that are rotated."""


def glm4v(patch_size: int = 2, hidden: int = 64, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """By default a head has 16 channels, eight of which are rotated: time, height and width all have frequencies."""
    from transformers import Glm4vConfig, Glm4vForConditionalGeneration
    from transformers.models.glm4v.configuration_glm4v import Glm4vTextConfig, Glm4vVisionConfig

    s = Sizes(**sizes, hidden=hidden)
    config = Glm4vConfig(
        vision_config=Glm4vVisionConfig(**encoder(s, patch_size)), text_config=Glm4vTextConfig(**language(s)), **ids()
    )
    return random_model(Glm4vForConditionalGeneration, config, s), inputs(s, patch_size)


def glm4v_moe(
    patch_size: int = 2,
    experts: int = 4,
    experts_per_token: int = 2,
    shared_experts: int = 1,
    dense_layers: int = 1,
    hidden: int = 64,
    **sizes: Any,
) -> tuple[nn.Module, InputMaker]:
    """As `glm4v`, with `experts` and `shared_experts` in all decoder layers but the first `dense_layers`."""
    from transformers import Glm4vMoeConfig, Glm4vMoeForConditionalGeneration
    from transformers.models.glm4v_moe.configuration_glm4v_moe import Glm4vMoeTextConfig, Glm4vMoeVisionConfig

    s = Sizes(**sizes, hidden=hidden)
    text = Glm4vMoeTextConfig(
        **language(s),
        moe_intermediate_size=max(1, s.intermediate // 2),
        n_routed_experts=experts,
        num_experts_per_tok=experts_per_token,
        n_shared_experts=shared_experts,
        first_k_dense_replace=dense_layers,
    )
    config = Glm4vMoeConfig(vision_config=Glm4vMoeVisionConfig(**encoder(s, patch_size)), text_config=text, **ids())
    return random_model(Glm4vMoeForConditionalGeneration, config, s), inputs(s, patch_size)


def encoder(s: Sizes, patch_size: int) -> dict[str, Any]:
    """A vision encoder whose table of positions is smaller than the grid of patches, which interpolates it."""
    return {
        "depth": s.vision_layers,
        "hidden_size": s.vision_hidden,
        "num_heads": s.vision_heads,
        "intermediate_size": 2 * s.vision_hidden,
        "out_hidden_size": s.hidden,
        "patch_size": patch_size,
        "image_size": patch_size * s.side,
    }


def language(s: Sizes) -> dict[str, Any]:
    """A GLM that rotates a part of each head."""
    return {**decoder(s), "rope_parameters": rope(mrope(s, rotated=ROTATED), partial_rotary_factor=ROTATED)}


def ids() -> dict[str, Any]:
    """Placeholders, and the ids around images and videos."""
    return {
        **placeholders("image_start_token_id", "image_end_token_id"),
        "video_start_token_id": VIDEO_START,
        "video_end_token_id": VIDEO_END,
    }


def inputs(s: Sizes, patch_size: int) -> InputMaker:
    """Images, and videos whose frames are images, followed by a word (the time); no batch may have both."""
    patch = [3 * 2 * patch_size**2]

    def video(generator: Generator, number: int) -> Media:
        frames, height, width = video_shape(s, number)
        tokens = [VIDEO_START]
        for frame in range(frames):
            tokens += [START, *[IMAGE] * (height * width), END, FIRST_WORD + frame]
        return Media([*tokens, VIDEO_END], pixels(generator, (frames, height, width), patch, kind="video"))

    return InputMaker(s.vocab, images(s, patch), video, extras=token_types)


def token_types(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Zero for text, one for tokens of images, two for those of videos, which have the same id."""
    inside = (ids == VIDEO_START).cumsum(-1) > (ids == VIDEO_END).cumsum(-1)
    return {"mm_token_type_ids": (ids == IMAGE) * torch.where(inside, 2, 1)}
