"""LLaVA-OneVision: a thumbnail and tiles seen by SigLIP, packed like LLaVA-NeXT's and shrunk; a projector, Qwen2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import IMAGE, VIDEO, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes
from prunekit.models.tiny.builders.llava_next import Anyres, frames, padded
from prunekit.models.tiny.builders.paligemma import siglip


def llava_onevision(
    patch_size: int = 4, tiles: int = 1, most: int = 2, anyres: bool = True, video_frames: int = 2, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Images are cut like those of `llava_next`, and shrunk to `most` tiles; frames of videos are pooled.

    Args:
        patch_size: of SigLIP.
        tiles: along the edge of the default image.
        most: see `Anyres`; image 2 of a prompt has more than 2.
        anyres: whether images are cut into tiles, as the processor does with those that are alone in their prompt;
            otherwise each is one tile, as if there were others.
        video_frames: of each video.
    """
    from transformers import LlavaOnevisionConfig, LlavaOnevisionForConditionalGeneration, Qwen2Config

    s = Sizes(**sizes)
    cut = Anyres(s.side, tiles, patch_size, most)
    config = LlavaOnevisionConfig(
        vision_config=siglip(s, cut.edge, patch_size),
        text_config=Qwen2Config(**decoder_sizes(s)),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=cut.pinpoints,
        vision_aspect_ratio=f"anyres_max_{most}",
    )
    model = random_model(LlavaOnevisionForConditionalGeneration, config, s)

    def one_tile(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, 1, 3, cut.edge, cut.edge, generator=generator)
        size = torch.tensor([[cut.edge, cut.edge]])
        return Media([IMAGE] * (cut.tile**2 + 1), {"pixel_values": pixels, "image_sizes": size})

    def video(generator: Generator, number: int) -> Media:
        return frames(generator, video_frames, cut.edge, video_frames * ((cut.tile + 1) // 2) ** 2 + 1)

    def join(media: list[list[Media]]) -> dict[str, Tensor]:
        inputs = padded(media)
        images = [sum("pixel_values" in item.tensors for item in row) for row in media]
        if any(images):
            counts = [1] * sum(images) if anyres else [max(2, count) for count in images if count]
            inputs["batch_num_images"] = torch.tensor(counts)
        return inputs

    return model, InputMaker(s.vocab, cut.image if anyres else one_tile, video, join)
