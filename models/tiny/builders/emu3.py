"""Emu3: images become ids of a VQ-VAE's codebook, whose embeddings (with line ends) replace the placeholders."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import FIRST_WORD, IMAGE, SPECIAL, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes

NEWLINE, START, END = SPECIAL[2:5]


def emu3(codes: int = 16, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """The last `codes` ids of the vocabulary are those of the codebook; the VQ-VAE halves the resolution once.

    Images 1 and 2 of a prompt are lower and narrower than the default one; all are padded to the same size.
    """
    from transformers import Emu3Config, Emu3ForConditionalGeneration, Emu3TextConfig, Emu3VQVAEConfig

    s = Sizes(**sizes)
    edge = 2 * s.side
    vocabulary = {f"<|visual token {code:06d}|>": s.vocab - codes + code for code in range(codes)}
    config = Emu3Config(
        vq_config=Emu3VQVAEConfig(
            codebook_size=codes,
            temporal_downsample_factor=2,
            base_channels=32,
            channel_multiplier=(1, 1),
            num_res_blocks=1,
            attn_resolutions=(1,),
            hidden_size=32,
        ),
        text_config=Emu3TextConfig(**decoder_sizes(s)),
        vocabulary_map={"<image>": IMAGE, "<|extra_200|>": NEWLINE} | vocabulary,
    )
    model = random_model(Emu3ForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        rows, columns = [(s.side, s.side), (s.side // 2, s.side), (s.side, s.side - 1)][number % 3]
        pixels = torch.zeros(1, 3, edge, edge)
        pixels[..., : 2 * rows, : 2 * columns] = torch.randn(1, 3, 2 * rows, 2 * columns, generator=generator)
        size = torch.tensor([[2 * rows, 2 * columns]])
        tokens = [BOI, FIRST_WORD, FIRST_WORD + 1, START, *[IMAGE] * (rows * (columns + 1)), END, EOI]
        return Media(tokens, {"pixel_values": pixels, "image_sizes": size})

    return model, InputMaker(s.vocab, image)
