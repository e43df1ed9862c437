"""MiniCPM-V 4.7: MiniCPM-V 4.6 whose positions place an image and its slices on one canvas."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.models.tiny.builders.common import SPECIAL, InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI
from prunekit.models.tiny.builders.minicpmv4_6 import SLICE, SLICE_END, encoder, media, others, packed
from prunekit.models.tiny.builders.qwen2_vl import token_types
from prunekit.models.tiny.builders.qwen3_5 import remembering

NEWLINE = SPECIAL[6]
"""Between rows of slices; the slices of these prompts stand in one row."""


def minicpmv4_7(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Layers and images are those of `minicpmv4_6`."""
    from transformers import MiniCPMV4_7Config, MiniCPMV4_7ForConditionalGeneration
    from transformers.models.minicpmv4_7.configuration_minicpmv4_7 import MiniCPMV4_7VisionConfig

    s = Sizes(**sizes)
    config = MiniCPMV4_7Config(
        vision_config=MiniCPMV4_7VisionConfig(**encoder(s, patch_size)),
        **others(s),
        image_start_id=BOI,
        image_end_id=EOI,
        slice_start_id=SLICE,
        slice_end_id=SLICE_END,
        newline_id=NEWLINE,
    )
    model = remembering(random_model(MiniCPMV4_7ForConditionalGeneration, config, s))
    return model, InputMaker(s.vocab, *media(s, patch_size), join=packed, extras=token_types)
