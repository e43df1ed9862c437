"""Cosmos3 Edge: SigLIP 2 over packed patches, a projector merging 2 x 2, a decoder with squared ReLU and M-RoPE."""

from __future__ import annotations

from typing import Any

from torch import Generator, nn

from prunekit.models.tiny.builders.common import FIRST_WORD, VIDEO, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import vision_sizes
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


def cosmos3_edge(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """The encoder's table of positions is smaller than the grid of patches; each frame of a video follows its time."""
    from transformers import Cosmos3EdgeConfig, Cosmos3EdgeForConditionalGeneration
    from transformers.models.cosmos3_edge.configuration_cosmos3_edge import (
        Cosmos3EdgeTextConfig,
        Cosmos3EdgeVisionConfig,
    )

    s = Sizes(**sizes)
    vision = Cosmos3EdgeVisionConfig(**vision_sizes(s), patch_size=patch_size, num_patches=s.side**2)
    text = Cosmos3EdgeTextConfig(
        **decoder(s), head_dim=s.hidden // s.heads, rope_parameters=rope(mrope(s, share=5 / 16))
    )
    config = Cosmos3EdgeConfig(
        vision_config=vision, text_config=text, projector_hidden_size=2 * s.hidden, **placeholders()
    )
    patch = [3 * patch_size**2]

    def video(generator: Generator, number: int) -> Media:
        frames, height, width = video_shape(s, number)
        tokens: list[int] = []
        for frame in range(frames):
            tokens += [FIRST_WORD + frame, FIRST_WORD, START, *[VIDEO] * (height * width), END]
        return Media(tokens, pixels(generator, (frames, height, width), patch, kind="video"))

    model = random_model(Cosmos3EdgeForConditionalGeneration, config, s)
    return model, InputMaker(s.vocab, images(s, patch), video, extras=token_types)
