"""Llama 4: a ViT with 2-D rotary embeddings and [CLS], pixel shuffle, a MoE decoder with chunked attention."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, SPECIAL, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes, vision_sizes

WHOLE, TILE_X, TILE_Y = SPECIAL[2:5]
"""Marks of the whole image, and after tiles in a row and after rows of tiles."""


def llama4(patch_size: int = 4, chunk: int = 32, floor_scale: int = 8192, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Attention in chunks of `chunk` but for every fourth (or the last) layer, experts in every second layer.

    Images 1 and 2 of a prompt have two tiles and the whole image, side by side and one below the other.
    """
    from transformers import Llama4Config, Llama4ForConditionalGeneration, Llama4TextConfig, Llama4VisionConfig

    s = Sizes(**sizes)
    edge = 2 * s.side * patch_size
    vision = Llama4VisionConfig(
        **vision_sizes(s, intermediate_size=4 * s.vision_hidden),
        image_size=edge,
        patch_size=patch_size,
        pixel_shuffle_ratio=0.5,
        projector_input_dim=2 * s.vision_hidden,
        projector_output_dim=2 * s.vision_hidden,
        vision_output_dim=2 * s.vision_hidden,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )
    text = Llama4TextConfig(
        **decoder_sizes(s, head_dim=s.hidden // s.heads),
        intermediate_size_mlp=2 * s.intermediate,
        num_local_experts=4,
        interleave_moe_layer_step=2,
        no_rope_layer_interval=min(4, s.layers),
        attention_chunk_size=chunk,
        floor_scale=floor_scale,
    )
    config = Llama4Config(
        vision_config=vision, text_config=text, image_token_index=IMAGE, boi_token_index=BOI, eoi_token_index=EOI
    )
    model = random_model(Llama4ForConditionalGeneration, config, s)
    patches = [IMAGE] * s.side**2

    def image(generator: Generator, number: int) -> Media:
        tiles: list[int] = [
            [],
            [*patches, TILE_X, *patches, TILE_Y],
            [*patches, TILE_Y, *patches, TILE_Y],
        ][number % 3]
        pixels = torch.randn(3 if tiles else 1, 3, edge, edge, generator=generator)
        return Media([BOI, *tiles, WHOLE, *patches, EOI], {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)
