"""Qwen3-VL: a ViT with learned and rotary positions, 2 x 2 merging, DeepStack, Qwen3, dense or a mixture of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Generator, nn

from prunekit.models.tiny.builders.common import FIRST_WORD, VIDEO, InputMaker, Media, MediaMaker, Sizes, random_model
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


def qwen3_vl(patch_size: int = 2, deepstack: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Features of `deepstack` vision layers are added after the first decoder layers."""
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration
    from transformers.models.qwen3_vl.configuration_qwen3_vl import Qwen3VLTextConfig, Qwen3VLVisionConfig

    s = Sizes(**sizes)
    vision = Qwen3VLVisionConfig(**encoder(s, patch_size), deepstack_visual_indexes=taps(s, deepstack))
    text = Qwen3VLTextConfig(**language(s))
    config = Qwen3VLConfig(vision_config=vision, text_config=text, **placeholders())
    return random_model(Qwen3VLForConditionalGeneration, config, s), inputs(s, patch_size)


def qwen3_vl_moe(
    patch_size: int = 2, deepstack: int = 2, experts: int = 4, experts_per_token: int = 2, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """As `qwen3_vl`, with `experts` in all decoder layers but the last, which is dense."""
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration
    from transformers.models.qwen3_vl_moe.configuration_qwen3_vl_moe import (
        Qwen3VLMoeTextConfig,
        Qwen3VLMoeVisionConfig,
    )

    s = Sizes(**sizes)
    vision = Qwen3VLMoeVisionConfig(**encoder(s, patch_size), deepstack_visual_indexes=taps(s, deepstack))
    text = Qwen3VLMoeTextConfig(
        **language(s),
        moe_intermediate_size=max(1, s.intermediate // 2),
        num_experts=experts,
        num_experts_per_tok=experts_per_token,
        mlp_only_layers=[s.layers - 1] if s.layers > 1 else [],
    )
    config = Qwen3VLMoeConfig(vision_config=vision, text_config=text, **placeholders())
    return random_model(Qwen3VLMoeForConditionalGeneration, config, s), inputs(s, patch_size)


def encoder(s: Sizes, patch_size: int) -> dict[str, Any]:
    """A vision encoder whose table of positions is smaller than the grid of patches, which interpolates it."""
    return {
        "depth": s.vision_layers,
        "hidden_size": s.vision_hidden,
        "num_heads": s.vision_heads,
        "intermediate_size": 2 * s.vision_hidden,
        "out_hidden_size": s.hidden,
        "patch_size": patch_size,
        "num_position_embeddings": s.side**2,
    }


def language(s: Sizes) -> dict[str, Any]:
    """A Qwen3 with interleaved multimodal RoPE."""
    sections = mrope(s, share=5 / 16)
    return {**decoder(s), "head_dim": s.hidden // s.heads, "rope_parameters": rope(sections, mrope_interleaved=True)}


def taps(s: Sizes, number: int) -> list[int]:
    """The vision layers whose features DeepStack takes."""
    count = min(number, s.vision_layers, s.layers)
    return [s.vision_layers * n // count for n in range(count)]


def inputs(s: Sizes, patch_size: int) -> InputMaker:
    """Images, and videos with timestamps."""
    patch = [3 * 2 * patch_size**2]
    return InputMaker(s.vocab, images(s, patch), timed_videos(s, patch), extras=token_types)


def timed_videos(s: Sizes, patch: Sequence[int]) -> MediaMaker:
    """A maker of videos in which words (the time) and `START` stand before each frame and `END` after it."""

    def video(generator: Generator, number: int) -> Media:
        frames, height, width = video_shape(s, number)
        tokens = [START]
        for frame in range(frames):
            tokens += [FIRST_WORD + frame, FIRST_WORD, START, *[VIDEO] * (height * width), END]
        return Media([*tokens, END], pixels(generator, (frames, height, width), patch, kind="video"))

    return video
