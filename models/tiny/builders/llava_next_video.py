"""LLaVA-NeXT-Video: LLaVA-NeXT with videos, whose frames are pooled before the projector."""

from __future__ import annotations

from typing import Any

from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, VIDEO, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.llava import llama
from prunekit.models.tiny.builders.llava_next import Anyres, clip, frames, padded


def llava_next_video(
    patch_size: int = 4, tiles: int = 1, video_frames: int = 3, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Images as in `llava_next`; a frame is one tile, and 2 x 2 of its patches become one visual token."""
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    s = Sizes(**sizes)
    cut = Anyres(s.side, tiles, patch_size)
    frame = (cut.tile // 2) ** 2
    config = LlavaNextVideoConfig(
        vision_config=clip(s, cut.edge, patch_size),
        text_config=llama(s),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=cut.pinpoints,
        image_seq_length=cut.tile**2,
        video_seq_length=frame,
    )
    model = random_model(LlavaNextVideoForConditionalGeneration, config, s)

    def video(generator: Generator, number: int) -> Media:
        return frames(generator, video_frames, cut.edge, video_frames * frame)

    return model, InputMaker(s.vocab, cut.image, video, padded)
