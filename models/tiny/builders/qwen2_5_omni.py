"""Qwen2.5-Omni (its thinker): the windowed ViT of Qwen2.5-VL, an audio encoder, Qwen2 with multimodal RoPE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import (
    IMAGE,
    SPECIAL,
    VIDEO,
    InputMaker,
    Media,
    MediaMaker,
    Sizes,
    random_model,
)
from prunekit.models.tiny.builders.qwen2_5_vl import encoder
from prunekit.models.tiny.builders.qwen2_vl import END, START, decoder, images, mrope, pixels, rope, video_shape

AUDIO, AUDIO_START, AUDIO_END = SPECIAL[2:5]
"""Ids of sound, and of those around it."""

SOUND = (8, 32)
"""Mel bins and frames of a piece of sound."""


def qwen2_5_omni(
    patch_size: int = 2, window: int | None = None, full_every: int = 2, vision_layers: int = 4, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Vision as in `qwen2_5_vl`. Behind every second image of a prompt someone speaks."""
    from transformers import Qwen2_5OmniThinkerConfig, Qwen2_5OmniThinkerForConditionalGeneration
    from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import (
        Qwen2_5OmniAudioEncoderConfig,
        Qwen2_5OmniTextConfig,
        Qwen2_5OmniVisionEncoderConfig,
    )

    s = Sizes(**sizes, vision_layers=vision_layers)
    config = Qwen2_5OmniThinkerConfig(
        vision_config=Qwen2_5OmniVisionEncoderConfig(**encoder(s, patch_size, window, full_every)),
        audio_config=Qwen2_5OmniAudioEncoderConfig(**audio(s)),
        text_config=Qwen2_5OmniTextConfig(**decoder(s), rope_parameters=rope(mrope(s))),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=AUDIO,
        **marks(),
    )
    model = random_model(Qwen2_5OmniThinkerForConditionalGeneration, config, s)
    return model, inputs(s, [3 * 2 * patch_size**2], sound=SOUND[1] // 4)


def audio(s: Sizes) -> dict[str, Any]:
    """An audio encoder of one layer, as wide as that of vision."""
    return {
        "num_mel_bins": SOUND[0],
        "encoder_layers": 1,
        "encoder_attention_heads": s.vision_heads,
        "encoder_ffn_dim": 2 * s.vision_hidden,
        "d_model": s.vision_hidden,
        "output_dim": s.hidden,
    }


def marks() -> dict[str, Any]:
    """Ids around images, videos and sound."""
    return {
        "vision_start_token_id": START,
        "vision_end_token_id": END,
        "audio_start_token_id": AUDIO_START,
        "audio_end_token_id": AUDIO_END,
    }


def inputs(s: Sizes, patch: Sequence[int], sound: int) -> InputMaker:
    """Images, every second of them with `sound` tokens of speech behind it, and videos that know their speed."""
    silent: MediaMaker = images(s, patch)

    def image(generator: Generator, number: int) -> Media:
        media = silent(generator, number)
        if number % 2 == 0:
            return media
        speech = {
            "input_features": torch.randn(1, *SOUND, generator=generator),
            "feature_attention_mask": torch.ones(1, SOUND[1], dtype=torch.long),
        }
        return Media([*media.tokens, AUDIO_START, *[AUDIO] * sound, AUDIO_END], {**media.tensors, **speech})

    def video(generator: Generator, number: int) -> Media:
        frames, height, width = video_shape(s, number)
        tensors = pixels(generator, (frames, height, width), patch, kind="video")
        tensors["video_second_per_grid"] = torch.tensor([0.5 * (number + 1)])
        return Media([START, *[VIDEO] * (frames * height * width), END], tensors)

    return InputMaker(s.vocab, image, video)
