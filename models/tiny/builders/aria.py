"""Aria: a SigLIP-like encoder for padded images, a cross-attention resampler, a decoder of experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes


def aria(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Grids of `side + 2`, resampled to side^2 tokens; images 1 and 2 of a prompt are narrow and cut into two crops."""
    from transformers import AriaConfig, AriaForConditionalGeneration, AriaTextConfig
    from transformers.models.idefics3.configuration_idefics3 import Idefics3VisionConfig

    s = Sizes(**sizes)
    tokens, grid = s.side**2, s.side + 2
    edge = grid * patch_size
    config = AriaConfig(
        vision_config=Idefics3VisionConfig(**vision_sizes(s), image_size=edge, patch_size=patch_size),
        text_config=AriaTextConfig(
            **decoder_sizes(s), moe_num_experts=4, moe_topk=2, moe_num_shared_experts=2, head_dim=s.hidden // s.heads
        ),
        projector_patch_to_query_dict={grid**2: tokens, 4 * grid**2: 2 * tokens},
        image_token_index=IMAGE,
    )
    model = random_model(AriaForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        crops, width = [(1, edge), (1, edge - 2 * patch_size), (2, edge)][number % 3]
        pixels, mask = torch.zeros(crops, 3, edge, edge), torch.zeros(crops, edge, edge, dtype=torch.bool)
        pixels[..., :width] = torch.randn(crops, 3, edge, width, generator=generator)
        mask[..., :width] = True
        return Media([IMAGE] * (crops * tokens), {"pixel_values": pixels, "pixel_mask": mask})

    return model, InputMaker(s.vocab, image)
