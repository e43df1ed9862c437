"""Florence-2: DaViT, a projector, BART. An encoder-decoder, which cannot be pruned: a subject of refusals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import BOS, EOS, IMAGE, PAD, InputMaker, Media, Sizes, random_model


def florence2(**sizes: Any) -> tuple[nn.Module, InputMaker]:
    """DaViT of two stages (eightfold reduction), side^2 visual tokens and one mean of them."""
    from transformers import BartConfig, Florence2Config, Florence2ForConditionalGeneration
    from transformers.models.florence2.configuration_florence2 import Florence2VisionConfig

    s = Sizes(**sizes)
    config = Florence2Config(
        vision_config=Florence2VisionConfig(
            depths=(1, 1),
            patch_size=(7, 3),
            patch_stride=(4, 2),
            patch_padding=(3, 1),
            patch_prenorm=(False, True),
            embed_dim=(s.vision_hidden // 2, s.vision_hidden),
            num_heads=(s.vision_heads, s.vision_heads),
            num_groups=(s.vision_heads, s.vision_heads),
            window_size=s.side,
            projection_dim=s.hidden,
            max_position_embeddings=s.side + 2,
        ),
        text_config=BartConfig(
            vocab_size=s.vocab,
            d_model=s.hidden,
            encoder_layers=s.layers,
            decoder_layers=s.layers,
            encoder_attention_heads=s.heads,
            decoder_attention_heads=s.heads,
            encoder_ffn_dim=s.intermediate,
            decoder_ffn_dim=s.intermediate,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            decoder_start_token_id=EOS,
            forced_eos_token_id=None,
        ),
        image_token_id=IMAGE,
    )
    model = random_model(Florence2ForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, 3, 8 * s.side, 8 * s.side, generator=generator)
        return Media([IMAGE] * (s.side**2 + 1), {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)
