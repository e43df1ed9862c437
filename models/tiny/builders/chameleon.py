"""Chameleon: images become ids of a VQ-VAE's codebook, whose embeddings stand among those of the words."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes


def chameleon(codes: int = 16, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """The last `codes` ids of the vocabulary are those of the codebook; the VQ-VAE halves the resolution once."""
    from transformers import ChameleonConfig, ChameleonForConditionalGeneration, ChameleonVQVAEConfig

    s = Sizes(**sizes)
    names = {f"IMGIMG{''.join('ABCDEFGHIJ'[int(digit)] for digit in str(code))}Z": code for code in range(codes)}
    config = ChameleonConfig(
        **decoder_sizes(s),
        vq_config=ChameleonVQVAEConfig(
            embed_dim=8,
            num_embeddings=codes,
            latent_channels=8,
            base_channels=32,
            channel_multiplier=(1, 1),
            num_res_blocks=1,
            resolution=2 * s.side,
        ),
        vocabulary_map={"<image>": IMAGE} | {name: s.vocab - codes + code for name, code in names.items()},
    )
    model = random_model(ChameleonForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, 3, 2 * s.side, 2 * s.side, generator=generator)
        return Media([BOI, *[IMAGE] * s.side**2, EOI], {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)
