"""Fuyu: no vision encoder, patches are projected straight into Persimmon."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import (
    BOS,
    EOS,
    IMAGE,
    PAD,
    SPECIAL,
    InputMaker,
    Media,
    Sizes,
    accepted,
    random_model,
)

NEWLINE = SPECIAL[0]


def fuyu(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Rows of patches end with a newline token; all images have side^2 patches."""
    from transformers import FuyuConfig, FuyuForCausalLM, PersimmonConfig

    s = Sizes(**sizes)
    text = PersimmonConfig(
        vocab_size=s.vocab,
        hidden_size=s.hidden,
        intermediate_size=s.intermediate,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        max_position_embeddings=8192,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    config = FuyuConfig(text_config=text, image_size=s.side * patch_size, patch_size=patch_size, image_token_id=IMAGE)
    model = random_model(FuyuForCausalLM, config, s)
    name = accepted(model, "pixel_values", "image_patches")  # the latter before transformers 5.21

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, s.side**2, 3 * patch_size**2, generator=generator)
        return Media([*[IMAGE] * s.side, NEWLINE] * s.side, {name: pixels})

    return model, InputMaker(s.vocab, image)
