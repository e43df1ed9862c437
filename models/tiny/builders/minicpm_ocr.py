"""MiniCPM-OCR: MiniCPM-V 4.6 without the encoder's shrinking, so that pages have four times as many visual tokens."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.models.tiny.builders.common import InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.minicpmv4_6 import encoder, media, others, packed
from prunekit.models.tiny.builders.qwen3_5 import remembering


def minicpm_ocr(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Layers and images are those of `minicpmv4_6`; a visual token stands for 2 x 2 patches."""
    from transformers import MiniCPMOcrConfig, MiniCPMOcrForConditionalGeneration
    from transformers.models.minicpm_ocr.configuration_minicpm_ocr import MiniCPMOcrVisionConfig

    s = Sizes(**sizes)
    config = MiniCPMOcrConfig(vision_config=MiniCPMOcrVisionConfig(**encoder(s, patch_size, merge=2)), **others(s))
    model = remembering(random_model(MiniCPMOcrForConditionalGeneration, config, s))
    return model, InputMaker(s.vocab, *media(s, patch_size, merge=2), join=packed)
