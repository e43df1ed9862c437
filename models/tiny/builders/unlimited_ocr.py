"""Unlimited-OCR: SAM and CLIP one behind the other, line ends, a decoder that forgets all but its prompt."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes
from prunekit.models.tiny.builders.deepseek_ocr2 import experts, sam


def unlimited_ocr(
    patch_size: int = 2, window: int = 6, generated: int = 3, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Rows of tokens with an end each, and a separator; all of these are placeholders.

    Text that is generated looks at the whole prompt and at the last `generated` tokens. Images are whole, as they are
    sent for documents of several pages: numbers of tiles would be lists, where all other inputs are tensors.
    """
    from transformers import UnlimitedOcrConfig, UnlimitedOcrForConditionalGeneration
    from transformers.models.unlimited_ocr.configuration_unlimited_ocr import (
        UnlimitedOcrSamVisionConfig,
        UnlimitedOcrTextConfig,
        UnlimitedOcrVisionConfig,
        UnlimitedOcrVisionEncoderConfig,
    )

    s = Sizes(**sizes)
    edge = 4 * s.side * patch_size
    config = UnlimitedOcrConfig(
        vision_config=UnlimitedOcrVisionConfig(
            sam_config=UnlimitedOcrSamVisionConfig(**sam(s, patch_size, window)),
            encoder_config=UnlimitedOcrVisionEncoderConfig(**vision_sizes(s), image_size=s.side, patch_size=1),
        ),
        text_config=UnlimitedOcrTextConfig(**decoder_sizes(s, **experts(s)), sliding_window=generated),
        image_token_id=IMAGE,
    )
    model = random_model(UnlimitedOcrForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, 3, edge, edge, generator=generator)
        return Media([IMAGE] * (s.side * (s.side + 1) + 1), {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)
