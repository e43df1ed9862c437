"""Aya Vision: tiles and a thumbnail seen by SigLIP, pixel shuffle, a gated projector, Cohere2."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.cohere2_vision import cohere2
from prunekit.models.tiny.builders.common import IMAGE, SPECIAL, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI
from prunekit.models.tiny.builders.internvl import tiles
from prunekit.models.tiny.builders.paligemma import siglip

THUMBNAIL, *TILES = SPECIAL[2:]
"""What is written before the thumbnail and before the n-th tile."""


def aya_vision(patch_size: int = 4, window: int = 8, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Tiles of (2 side)^2 patches, of which 2 x 2 become one visual token; images 1 and 2 of a prompt have several."""
    from transformers import AyaVisionConfig, AyaVisionForConditionalGeneration

    s = Sizes(**sizes)
    tokens, edge = s.side**2, 2 * s.side * patch_size
    projector: dict[str, Any] = {"alignment_intermediate_size": 2 * s.hidden}  # checkpoints have it, but it is no field
    config = AyaVisionConfig(
        vision_config=siglip(s, edge, patch_size),
        text_config=cohere2(s, window),
        image_token_index=IMAGE,
        **projector,
    )
    model = random_model(AyaVisionForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        parts = tiles(number)
        pixels = torch.randn(parts, 3, edge, edge, generator=generator)
        ids = [BOI]
        for marker in (*TILES[: parts - 1], THUMBNAIL):
            ids += [marker, *[IMAGE] * tokens]
        return Media([*ids, EOI], {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)
