"""Qianfan-OCR: tiles seen by InternViT ([CLS], layer scales, stochastic depth), pixel shuffle, Qwen3."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes, vision_sizes
from prunekit.models.tiny.builders.internvl import tiles


def qianfan_ocr(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Tiles of (2 side)^2 patches, of which 2 x 2 become one visual token; images 1 and 2 have several tiles."""
    from transformers import QianfanOCRConfig, QianfanOCRForConditionalGeneration, Qwen3Config
    from transformers.models.qianfan_ocr.configuration_qianfan_ocr import QianfanOCRVisionConfig

    s = Sizes(**sizes)
    tokens, edge = s.side**2, 2 * s.side * patch_size
    config = QianfanOCRConfig(
        vision_config=QianfanOCRVisionConfig(**vision_sizes(s), image_size=edge, patch_size=patch_size),
        text_config=Qwen3Config(**decoder_sizes(s, head_dim=s.hidden // s.heads)),
        image_token_id=IMAGE,
        image_seq_length=tokens,
    )
    model = random_model(QianfanOCRForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        parts = tiles(number)
        pixels = torch.randn(parts, 3, edge, edge, generator=generator)
        return Media([BOI, *[IMAGE] * (parts * tokens), EOI], {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)
