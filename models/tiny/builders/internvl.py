"""InternVL: tiles seen by InternViT ([CLS], layer scales, optional norms of queries and keys), pixel shuffle, Qwen2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import FIRST_WORD, IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes, vision_sizes


def internvl(
    patch_size: int = 4, norm: str = "rms_norm", qk_norm: bool = True, video_frames: int = 2, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Tiles of (2 side)^2 patches, of which 2 x 2 become one visual token.

    Images 1 and 2 of a prompt are cut into two and three tiles, followed by a thumbnail. `norm` and `qk_norm` are
    those of the large encoder; the small one has `layer_norm` and no norms of queries and keys. Frames of a video are
    tiles with words before and between them.
    """
    from transformers import InternVLConfig, InternVLForConditionalGeneration, InternVLVisionConfig, Qwen2Config

    s = Sizes(**sizes)
    tokens, edge = s.side**2, 2 * s.side * patch_size
    vision = InternVLVisionConfig(
        **vision_sizes(s),
        image_size=edge,
        patch_size=patch_size,
        norm_type=norm,
        use_qk_norm=qk_norm,
        attention_bias=not qk_norm,
    )
    config = InternVLConfig(
        vision_config=vision,
        text_config=Qwen2Config(**decoder_sizes(s)),
        image_token_id=IMAGE,
        image_seq_length=tokens,
        tie_word_embeddings=False,
    )
    model = random_model(InternVLForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        parts = tiles(number)
        pixels = torch.randn(parts, 3, edge, edge, generator=generator)
        return Media([BOI, *[IMAGE] * (parts * tokens), EOI], {"pixel_values": pixels})

    def video(generator: Generator, number: int) -> Media:
        pixels = torch.randn(video_frames, 3, edge, edge, generator=generator)
        ids: list[int] = []
        for frame in range(video_frames):
            ids += [FIRST_WORD + 1 + frame, BOI, *[IMAGE] * tokens, EOI, FIRST_WORD]
        return Media(ids[:-1], {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image, video)


def tiles(number: int) -> int:
    """Tiles of the n-th image of a prompt, the thumbnail included that images of several tiles have."""
    return (1, 3, 4)[number % 3]
