"""ERNIE-4.5-VL: a ViT over packed patches, a resampler in space and time, a decoder with experts per modality."""

from __future__ import annotations

from typing import Any

from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import IMAGE, SPECIAL, VIDEO, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.qwen2_vl import (
    END,
    START,
    decoder,
    images,
    mrope,
    pixels,
    placeholders,
    rope,
    token_types,
    video_shape,
)

VIDEO_START, VIDEO_END = SPECIAL[2:4]


def ernie4_5_vl_moe(
    patch_size: int = 2,
    experts: int = 4,
    experts_per_token: int = 2,
    shared_experts: int = 1,
    **sizes: Any,
) -> tuple[nn.Module, InputMaker]:
    """`experts` for text and as many for visual tokens in all decoder layers but the first, which is dense."""
    from transformers import Ernie4_5_VLMoeConfig, Ernie4_5_VLMoeForConditionalGeneration
    from transformers.models.ernie4_5_vl_moe.configuration_ernie4_5_vl_moe import (
        Ernie4_5_VLMoeTextConfig,
        Ernie4_5_VLMoeVisionConfig,
    )

    s = Sizes(**sizes)
    vision = Ernie4_5_VLMoeVisionConfig(
        depth=s.vision_layers,
        hidden_size=s.vision_hidden,
        num_heads=s.vision_heads,
        intermediate_size=2 * s.vision_hidden,
        patch_size=patch_size,
    )
    time, height, width = mrope(s, share=11 / 32)
    text = Ernie4_5_VLMoeTextConfig(
        **decoder(s),
        rope_parameters=rope([height, width, time]),
        moe_intermediate_size=[max(1, s.intermediate // 2), max(1, s.intermediate // 4)],
        moe_k=experts_per_token,
        moe_num_experts=experts,
        moe_num_shared_experts=shared_experts,
    )
    config = Ernie4_5_VLMoeConfig(
        vision_config=vision,
        text_config=text,
        **placeholders("image_start_token_id", "image_end_token_id"),
        video_start_token_id=VIDEO_START,
        video_end_token_id=VIDEO_END,
    )
    patch = [3 * patch_size**2]

    def video(generator: Generator, number: int) -> Media:
        pairs, height, width = video_shape(s, number)
        tokens = [VIDEO_START, *[VIDEO] * (pairs * height * width), VIDEO_END]
        return Media(tokens, pixels(generator, (2 * pairs, height, width), patch, kind="video"))

    model = random_model(Ernie4_5_VLMoeForConditionalGeneration, config, s)
    return model, InputMaker(s.vocab, images(s, patch), video, extras=expert_types)


def expert_types(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Token types for positions, and those that choose between experts, for which start and end are visual too."""
    image = (ids == IMAGE) | (ids == START) | (ids == END)
    video = (ids == VIDEO) | (ids == VIDEO_START) | (ids == VIDEO_END)
    return {**token_types(ids, mask), "moe_mm_token_type_ids": image.long() + 2 * video}
