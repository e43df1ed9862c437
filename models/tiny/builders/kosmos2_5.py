"""Kosmos-2.5: a Pix2Struct encoder over lists of patches, latent queries, a decoder with sinusoidal positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import BOS, EOS, IMAGE, PAD, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, vision_sizes


def kosmos2_5(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Latent queries, side^2 of them, look at grids of `side + 2`; images 1 and 2 of a prompt have fewer patches.

    Visual positions are not read from the ids but from an input of their own, `image_embeds_position_mask`.
    """
    from transformers import Kosmos2_5Config, Kosmos2_5ForConditionalGeneration
    from transformers.models.kosmos2_5.configuration_kosmos2_5 import Kosmos2_5TextConfig, Kosmos2_5VisionConfig

    s = Sizes(**sizes)
    tokens, grid, channels = s.side**2, s.side + 2, 3 * patch_size**2
    config = Kosmos2_5Config(
        text_config=Kosmos2_5TextConfig(
            vocab_size=s.vocab,
            embed_dim=s.hidden,
            layers=s.layers,
            ffn_dim=s.intermediate,
            attention_heads=s.heads,
            pad_token_id=PAD,
            bos_token_id=BOS,
            eos_token_id=EOS,
            tie_word_embeddings=False,
        ),
        vision_config=Kosmos2_5VisionConfig(
            **vision_sizes(s),
            head_dim=s.vision_hidden // s.vision_heads,
            patch_embed_hidden_size=channels,
            max_num_patches=grid**2,
        ),
        latent_query_num=tokens,
        tie_word_embeddings=False,
    )
    model = random_model(Kosmos2_5ForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        rows, columns = [(grid, grid), (grid - 1, grid), (grid, grid - 2)][number % 3]
        patches = torch.zeros(1, grid**2, 2 + channels)
        count = rows * columns
        patches[0, :count, :2] = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float() + 1
        patches[0, :count, 2:] = torch.randn(count, channels, generator=generator)
        return Media([BOI, *[IMAGE] * tokens, EOI], {"flattened_patches": patches})

    return model, InputMaker(s.vocab, image, extras=positions)


def positions(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """1 for visual tokens, -1 for start and end of an image, 0 for text."""
    return {"image_embeds_position_mask": (ids == IMAGE).long() - ((ids == BOI) | (ids == EOI)).long()}
