"""Inkling: image patches folded without attention, a decoder of relative positions, convolutions and experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, SPECIAL, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, decoder_sizes
from prunekit.models.tiny.builders.qwen2_vl import image_shape

AUDIO, START_OF_AUDIO = SPECIAL[2:4]


def inkling(patch_size: int = 2, window: int | None = None, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Every second layer sees everything, the others `window` tokens (one and a half images); a patch is a token.

    Images are `side` x `side` and of other shapes. The first decoder layer is dense, the others have experts.
    """
    from transformers import InklingConfig, InklingForConditionalGeneration
    from transformers.models.inkling.configuration_inkling import (
        InklingAudioConfig,
        InklingTextConfig,
        InklingVisionConfig,
    )

    s = Sizes(**sizes)
    text = InklingTextConfig(
        **attention(s, window),
        mlp_layer_types=["sparse" if n else "dense" for n in range(s.layers)],
        n_shared_experts=2,
        logits_mup_width_multiplier=1.0,
    )
    config = InklingConfig(
        text_config=text,
        # Fewer layers than steps of folding would be spread over the steps by SciPy.
        vision_config=InklingVisionConfig(patch_size=patch_size, num_hidden_layers=max(s.vision_layers, 3)),
        audio_config=InklingAudioConfig(n_mel_bins=4, mel_vocab_size=8),
        image_token_id=IMAGE,
        audio_token_id=AUDIO,
        image_bos_token_id=BOI,
        audio_bos_token_id=START_OF_AUDIO,
    )
    model = random_model(InklingForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        height, width = image_shape(s, number)
        patches = torch.randn(height * width, 1, patch_size, patch_size, 3, generator=generator)
        frames = patches.expand(-1, 2, -1, -1, -1)  # a picture is a film of two equal frames
        return Media([BOI, *[IMAGE] * (height * width)], {"pixel_values": frames})

    return model, InputMaker(s.vocab, image)


def attention(s: Sizes, window: int | None) -> dict[str, Any]:
    """A decoder whose layers alternate between a window and the whole sequence, with a small mixture of experts."""
    return decoder_sizes(
        s,
        head_dim=s.hidden // s.heads,
        swa_num_attention_heads=s.heads,
        swa_num_key_value_heads=s.key_heads,
        swa_head_dim=s.hidden // s.heads,
        sliding_window_size=window or 3 * s.side**2 // 2,
        layer_types=["hybrid" if n % 2 else "hybrid_sliding" for n in range(s.layers)],
        d_rel=8,
        rel_extent=s.side**2,
        moe_intermediate_size=max(1, s.intermediate // 2),
        n_routed_experts=4,
        num_experts_per_tok=2,
    )
