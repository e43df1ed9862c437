"""Video-LLaVA: one CLIP for images and one for frames, a projector for both, Llama."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, VIDEO, InputMaker, Media, Sizes, accepted, random_model
from prunekit.models.tiny.builders.llava import llama
from prunekit.models.tiny.builders.llava_next import clip, frames


def video_llava(patch_size: int = 4, video_frames: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Images of side^2 patches, one visual token each; frames keep their [CLS] as well."""
    from transformers import VideoLlavaConfig, VideoLlavaForConditionalGeneration

    s = Sizes(**sizes)
    tokens, edge = s.side**2, s.side * patch_size
    config = VideoLlavaConfig(
        vision_config=clip(s, edge, patch_size),
        text_config=llama(s),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_seq_length=tokens,
        video_seq_length=video_frames * (tokens + 1),
    )
    model = random_model(VideoLlavaForConditionalGeneration, config, s)
    name = accepted(model, "pixel_values", "pixel_values_images")  # the latter before transformers 5.21

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, 3, edge, edge, generator=generator)
        return Media([IMAGE] * tokens, {name: pixels})

    def video(generator: Generator, number: int) -> Media:
        return frames(generator, video_frames, edge, video_frames * (tokens + 1))

    return model, InputMaker(s.vocab, image, video)
