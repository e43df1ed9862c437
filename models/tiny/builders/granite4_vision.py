"""Granite 4 Vision: SigLIP on tiles, windowed Q-Formers on several of its layers, which feed several decoder layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.granite_docling import granite
from prunekit.models.tiny.builders.llava_next import Anyres, padded
from prunekit.models.tiny.builders.paligemma import siglip

CORNERS = 4
"""Corners of blocks of 2 x 2 patches, each with a Q-Former of its own."""


def granite4_vision(patch_size: int = 4, tiles: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Images are those of `llava_next`; blocks of 2 x 2 patches become one visual token.

    No features enter with the text: up to eight kinds are added to the states before as many decoder layers, half of
    them from the last layers of the encoder, half from the corners of its blocks. The encoder has 64 channels or more,
    since the Q-Formers have a head for every 64.
    """
    from transformers import Granite4VisionConfig, Granite4VisionForConditionalGeneration
    from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig
    from transformers.models.granite4_vision.configuration_granite4_vision import Granite4VisionTextConfig

    s = Sizes(**sizes)
    s = replace(s, vision_hidden=max(64, s.vision_hidden))
    cut = Anyres(s.side, tiles, 2 * patch_size)
    queries = 1 + (cut.tile % 2 == 0)  # along the edge of a window
    targets = list(range(0, s.layers, max(1, s.layers // (2 * CORNERS))))[: 2 * CORNERS]
    first = (len(targets) + 1) // 2
    config = Granite4VisionConfig(
        vision_config=siglip(s, cut.edge, patch_size),
        text_config=Granite4VisionTextConfig(**granite(s)),
        qformer_config=Blip2QFormerConfig(
            num_hidden_layers=1, intermediate_size=2 * s.vision_hidden, cross_attention_frequency=1
        ),
        image_token_index=IMAGE,
        image_grid_pinpoints=cut.pinpoints,
        vision_feature_select_strategy="full",
        downsample_rate=f"{queries}/{2 * queries}",
        deepstack_layer_map=[[-1 - min(n, s.vision_layers), layer] for n, layer in enumerate(targets[:first])],
        spatial_target_layers=targets[first:],
    )
    model = random_model(Granite4VisionForConditionalGeneration, config, s)
    return model, InputMaker(s.vocab, cut.image, join=padded)
