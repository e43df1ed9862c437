"""Cohere2 Vision: tiles seen by SigLIP, pixel shuffle, a gated projector, Cohere2 with sliding and full attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, SPECIAL, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes
from prunekit.models.tiny.builders.internvl import tiles
from prunekit.models.tiny.builders.paligemma import siglip

LINE_BREAK = SPECIAL[2]


def cohere2_vision(patch_size: int = 4, window: int = 8, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Tiles of (2 side)^2 patches, of which 2 x 2 become one visual token; images 1 and 2 of a prompt have several."""
    from transformers import Cohere2VisionConfig, Cohere2VisionForConditionalGeneration

    s = Sizes(**sizes)
    tokens, edge = s.side**2, 2 * s.side * patch_size
    config = Cohere2VisionConfig(
        vision_config=siglip(s, edge, patch_size),
        text_config=cohere2(s, window),
        image_token_id=IMAGE,
        alignment_intermediate_size=2 * s.hidden,
    )
    model = random_model(Cohere2VisionForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        parts = tiles(number)
        pixels = torch.randn(parts, 3, edge, edge, generator=generator)
        return Media([BOI, *([IMAGE] * tokens + [LINE_BREAK]) * parts, EOI], {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)


def cohere2(s: Sizes, window: int) -> Any:
    """A Cohere2 of these sizes: every fourth layer (the last of fewer) has full attention and no positions."""
    from transformers import Cohere2Config

    period = min(4, s.layers)
    kinds = ["sliding_attention" if layer % period else "full_attention" for layer in range(1, s.layers + 1)]
    return Cohere2Config(**decoder_sizes(s), sliding_window=window, layer_types=kinds)
