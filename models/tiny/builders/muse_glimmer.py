"""Muse Glimmer: a windowed ViT over packed patches, 2 x 2 merging, a gated decoder with windows in most layers."""

from __future__ import annotations

from typing import Any

from torch import Generator, nn

from prunekit.models.tiny.builders.common import (
    FIRST_WORD,
    IMAGE,
    SPECIAL,
    VIDEO,
    InputMaker,
    Media,
    Sizes,
    random_model,
)
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes
from prunekit.models.tiny.builders.qwen2_vl import END, START, images, pixels, video_shape

FRAME_END = SPECIAL[2]
"""Between the frames of a video."""


def muse_glimmer(patch_size: int = 2, window: int | None = None, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Every fourth layer, counted from the last, sees everything and has no positions; the others see `window` tokens.

    The window is one and a half images.
    """
    from transformers import MuseGlimmerConfig, MuseGlimmerForConditionalGeneration
    from transformers.models.muse_glimmer.configuration_muse_glimmer import (
        MuseGlimmerTextConfig,
        MuseGlimmerVisionConfig,
    )

    s = Sizes(**sizes)
    config = MuseGlimmerConfig(
        text_config=MuseGlimmerTextConfig(**language(s, window)),
        vision_config=MuseGlimmerVisionConfig(**encoder(s, patch_size)),
        **around(s),
    )
    return random_model(MuseGlimmerForConditionalGeneration, config, s), inputs(s, patch_size)


def language(s: Sizes, window: int | None) -> dict[str, Any]:
    """Sizes of the decoder; the logits are scaled as those of the released model, by 16 over the root of its width."""
    return decoder_sizes(
        s,
        head_dim=s.hidden // s.heads,
        sliding_window=window or 3 * s.side**2 // 2,
        output_multiplier=16 / s.hidden**0.5,
    )


def encoder(s: Sizes, patch_size: int) -> dict[str, Any]:
    """A vision encoder whose windows, and whose table of positions, are half of the default image wide."""
    return vision_sizes(s, patch_size=patch_size, pos_emb_height=s.side, pos_emb_width=s.side)


def around(s: Sizes) -> dict[str, Any]:
    """Placeholders, and the sizes of the projector."""
    return {
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
        "out_hidden_size": 4 * s.vision_hidden,
        "projector_hidden_size": 2 * s.hidden,
    }


def inputs(s: Sizes, patch_size: int) -> InputMaker:
    """Images, and videos with a time before each frame and a separator between frames."""
    patch = [3 * 2 * patch_size**2]

    def video(generator: Generator, number: int) -> Media:
        frames, height, width = video_shape(s, number)
        tokens = [START]
        for frame in range(frames):
            tokens += [FIRST_WORD + frame, *[VIDEO] * (height * width), FRAME_END]
        return Media([*tokens[:-1], END], pixels(generator, (frames, height, width), patch, kind="video"))

    return InputMaker(s.vocab, images(s, patch), video)
