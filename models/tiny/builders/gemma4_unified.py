"""Gemma 4 without encoders: patches projected one by one, a decoder with sliding windows, keys that are values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import IMAGE, VIDEO, InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes
from prunekit.models.tiny.builders.gemma4 import AUDIO, media, token_types


def gemma4_unified(
    window: int | None = None, pooling: int = 2, patch_size: int = 2, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Every second layer has a sliding window of `window` tokens (one and a half images), in which images see all.

    A visual token is the pixels of `pooling` x `pooling` patches. Images 1 and 2 of a prompt are lower and narrower
    than the default one, their lists of tokens are padded. Videos have two frames of a quarter of the size.
    """
    from transformers import (
        Gemma4UnifiedConfig,
        Gemma4UnifiedForConditionalGeneration,
        Gemma4UnifiedTextConfig,
        Gemma4UnifiedVisionConfig,
    )

    s = Sizes(**sizes)
    head_dim, shared_heads = s.hidden // s.heads, max(1, s.key_heads // 2)
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(s.layers)]
    text = Gemma4UnifiedTextConfig(
        **decoder_sizes(s, head_dim=head_dim, global_head_dim=2 * head_dim, num_global_key_value_heads=shared_heads),
        attention_k_eq_v=True,
        sliding_window=window or 3 * s.side**2 // 2,
        layer_types=[*kinds[:-1], "full_attention"],
        tie_word_embeddings=False,
    )
    vision = Gemma4UnifiedVisionConfig(
        patch_size=patch_size,
        pooling_kernel_size=pooling,
        mm_embed_dim=s.vision_hidden,
        output_proj_dims=s.vision_hidden,
        mm_posemb_size=2 * s.side,
    )
    config = Gemma4UnifiedConfig(
        text_config=text,
        vision_config=vision,
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        boi_token_id=BOI,
        eoi_token_id=EOI,
        tie_word_embeddings=False,
    )
    model = random_model(Gemma4UnifiedForConditionalGeneration, config, s)
    width_of_token = 3 * (pooling * patch_size) ** 2

    def pixels(generator: Generator, height: int, width: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Pixels of `height` by `width` visual tokens and their (x, y), padded to `tokens` tokens."""
        values, positions = torch.zeros(1, tokens, width_of_token), torch.full((1, tokens, 2), -1)
        values[:, : height * width] = torch.rand(1, height * width, width_of_token, generator=generator)
        positions[:, : height * width] = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(-1)
        return values, positions

    return model, InputMaker(s.vocab, *media(s, pixels), extras=token_types)
