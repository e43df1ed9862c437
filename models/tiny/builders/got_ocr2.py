"""GOT-OCR2: SAM's encoder with attention windows, two strided convolutions, Qwen2."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes, vision_sizes


def got_ocr2(patch_size: int = 2, window: int = 6, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Windows of `window` but for the last layer; every second image of a prompt has two parts.

    The vision encoder is always eager: the model cannot be told to use anything else.
    """
    from transformers import GotOcr2Config, GotOcr2ForConditionalGeneration, Qwen2Config
    from transformers.models.got_ocr2.configuration_got_ocr2 import GotOcr2VisionConfig

    s = Sizes(**sizes)
    tokens, edge = s.side**2, 4 * s.side * patch_size
    vision = GotOcr2VisionConfig(
        **vision_sizes(s),
        mlp_dim=2 * s.vision_hidden,
        output_channels=s.vision_hidden,
        image_size=edge,
        patch_size=patch_size,
        window_size=window,
        global_attn_indexes=(s.vision_layers - 1,),
    )
    config = GotOcr2Config(
        vision_config=vision,
        text_config=Qwen2Config(**decoder_sizes(s)),
        image_token_index=IMAGE,
        image_seq_length=tokens,
        tie_word_embeddings=False,
    )
    model: Any = random_model(GotOcr2ForConditionalGeneration, config, replace(s, attn_implementation="eager"))
    model.set_attn_implementation({"text_config": s.attn_implementation})

    def image(generator: Generator, number: int) -> Media:
        parts = number % 2 + 1
        pixels = torch.randn(parts, 3, edge, edge, generator=generator)
        return Media([BOI, *[IMAGE] * (parts * tokens), EOI], {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)
