"""VideoLLaMA3: a ViT over packed patches, averaged 2 x 2 in videos, a two-layer projector, Qwen2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import FIRST_WORD, IMAGE, VIDEO, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.qwen2_vl import decoder, image_shape, pixels, video_shape


def video_llama_3(
    patch_size: int = 4, image_merge: int = 1, video_merge: int = 2, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """`image_merge` and `video_merge` are edges of the squares of patches averaged to one visual token.

    Of every frame after the first, half of the visual tokens are kept, as if they differed from the frame before.
    """
    from transformers import Qwen2Config, VideoLlama3Config, VideoLlama3ForConditionalGeneration
    from transformers.models.video_llama_3.configuration_video_llama_3 import VideoLlama3VisionConfig

    s = Sizes(**sizes)
    vision = VideoLlama3VisionConfig(
        hidden_size=s.vision_hidden,
        intermediate_size=2 * s.vision_hidden,
        num_hidden_layers=s.vision_layers,
        num_attention_heads=s.vision_heads,
        patch_size=patch_size,
    )
    config = VideoLlama3Config(
        vision_config=vision,
        text_config=Qwen2Config(**decoder(s)),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    patch = [3 * patch_size**2]

    def image(generator: Generator, number: int) -> Media:
        height, width = image_shape(s, number)
        tensors = pixels(generator, (1, height, width), patch, image_merge)
        return Media([IMAGE] * (height * width), {**tensors, "image_merge_sizes": torch.tensor([image_merge])})

    def video(generator: Generator, number: int) -> Media:
        frames, height, width = video_shape(s, number)
        kept = torch.rand(frames, height * width, generator=generator).argsort(-1) < (height * width + 1) // 2
        kept[0] = True
        tokens: list[int] = []
        for frame in range(frames):
            tokens += [FIRST_WORD, FIRST_WORD + frame, *[VIDEO] * int(kept[frame].sum())]
        tensors = pixels(generator, (frames, height, width), patch, video_merge, kind="video")
        tensors["video_merge_sizes"] = torch.tensor([video_merge])
        return Media(tokens, {**tensors, "video_compression_mask": kept.flatten()})

    model = random_model(VideoLlama3ForConditionalGeneration, config, s)
    return model, InputMaker(s.vocab, image, video)
