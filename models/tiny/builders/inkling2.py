"""Inkling 2: a packed ViT that merges 2 x 2, Inkling's decoder with attention over residuals of blocks of layers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, vision_sizes
from prunekit.models.tiny.builders.inkling import attention
from prunekit.models.tiny.builders.qwen2_vl import image_shape


def inkling2(
    patch_size: int = 2, merge: int = 2, window: int | None = None, layers_per_block: int = 2, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """As `inkling`, with residuals of blocks of `layers_per_block` layers, and images of `merge` x `merge` patches.

    The language model is eager where "sdpa" is asked for, which it does not support.
    """
    from transformers import Inkling2Config, Inkling2ForConditionalGeneration
    from transformers.models.inkling2.configuration_inkling2 import Inkling2TextConfig, Inkling2VisionConfig

    s = Sizes(**sizes)
    text: dict[str, Any] = attention(s, window)
    text.pop("intermediate_size")  # all layers have experts, whose size it would be another name of
    config = Inkling2Config(
        text_config=Inkling2TextConfig(
            **text, n_layers_per_attn_res_block=layers_per_block, unpadded_vocab_size=s.vocab
        ),
        vision_config=Inkling2VisionConfig(
            **vision_sizes(s),
            patch_size=patch_size,
            spatial_merge_size=merge,
            posemb_grid_size=s.side,
            projection_hidden_dim=2 * s.hidden,
            text_hidden_size=s.hidden,
        ),
        image_token_id=IMAGE,
    )
    kinds: Any = s.attn_implementation
    if kinds == "sdpa":
        kinds = {"": "eager", "vision_config": "sdpa", "text_config": "eager"}
    model = random_model(Inkling2ForConditionalGeneration, config, replace(s, attn_implementation=kinds))

    def image(generator: Generator, number: int) -> Media:
        height, width = image_shape(s, number)
        edge = merge * patch_size
        tensors = {
            "pixel_values": torch.randn(height * width, edge, edge, 3, generator=generator),
            "image_grid_thw": torch.tensor([[1, height, width]]),
        }
        return Media([BOI, *[IMAGE] * (height * width)], tensors)

    return model, InputMaker(s.vocab, image)
