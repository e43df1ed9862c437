"""T5Gemma 2: SigLIP, Gemma 3 as an encoder and as a decoder. A subject of refusals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import BOS, IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes
from prunekit.models.tiny.builders.paligemma import siglip


def t5gemma2(window: int = 8, pool: int = 2, patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """The decoder attends to its own and the encoder's states at once; every other layer has a window of `window`."""
    from transformers import T5Gemma2Config, T5Gemma2ForConditionalGeneration
    from transformers.models.t5gemma2.configuration_t5gemma2 import (
        T5Gemma2DecoderConfig,
        T5Gemma2EncoderConfig,
        T5Gemma2TextConfig,
    )

    s = Sizes(**sizes)
    edge = s.side * pool * patch_size
    arguments = decoder_sizes(
        s,
        head_dim=s.hidden // s.heads,
        query_pre_attn_scalar=s.hidden // s.heads,
        sliding_window=window,
        layer_types=["full_attention" if layer % 2 else "sliding_attention" for layer in range(s.layers)],
    )
    config = T5Gemma2Config(
        encoder=T5Gemma2EncoderConfig(
            text_config=T5Gemma2TextConfig(**arguments),
            vision_config=siglip(s, edge, patch_size),
            mm_tokens_per_image=s.side**2,
            image_token_index=IMAGE,
            boi_token_index=BOI,
            eoi_token_index=EOI,
        ),
        decoder=T5Gemma2DecoderConfig(**arguments),
        image_token_index=IMAGE,
    )
    model = random_model(T5Gemma2ForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, 3, edge, edge, generator=generator)
        return Media([BOI, *[IMAGE] * s.side**2, EOI], {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image, extras=answer)


def answer(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """The first token of the decoder."""
    return {"decoder_input_ids": torch.full_like(ids[:, :1], BOS)}
