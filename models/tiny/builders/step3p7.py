"""Step 3.7: a ViT with 2-D rotary embeddings, strided convolutions, a MoE decoder with sliding windows and gates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, SPECIAL, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes, vision_sizes

CROP, CROP_END, NEWLINE = SPECIAL[2:5]
"""Start and end of a crop, and after crops in a row."""

REDUCTION = 4
"""Patches along the edge of the square that two convolutions with a stride of two make one token of."""


def step3p7(window: int | None = None, patch_size: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Three layers of four have a sliding window of `window` tokens (one and a half images) and more heads.

    All layers but the first have experts, one of which is shared, and clamp them in the last. Images 1 and 2 of a
    prompt come with two crops, one below the other and side by side, of fewer tokens than the whole image.
    """
    from transformers import Step3p7Config, Step3p7ForConditionalGeneration, Step3p7TextConfig, Step3p7VisionConfig

    s = Sizes(**sizes)
    unit, small = REDUCTION * patch_size, max(1, s.side * 9 // 13)  # crops of 9 x 9 tokens go with images of 13 x 13
    vision = Step3p7VisionConfig(**vision_sizes(s), mlp_ratio=2.0, image_size=unit * s.side, patch_size=patch_size)
    text = Step3p7TextConfig(
        **decoder_sizes(s, head_dim=s.hidden // s.heads),
        num_sliding_attention_heads=s.heads + s.key_heads,
        sliding_window=window or 3 * s.side**2 // 2,
        layer_types=["sliding_attention" if layer % 4 else "full_attention" for layer in range(s.layers)],
        mlp_layer_types=["dense", *["sparse"] * (s.layers - 1)],
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=s.intermediate // 2,
        share_expert_dim=s.intermediate // 2,
        moe_router_scaling_factor=3.0,
        swiglu_limits=[*[None] * (s.layers - 1), 7.0],
        swiglu_limits_shared=[*[None] * (s.layers - 1), 16.0],
        rope_parameters={
            "full_attention": {"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    )
    config = Step3p7Config(vision_config=vision, text_config=text, image_token_id=IMAGE)
    model = random_model(Step3p7ForConditionalGeneration, config, s)
    crop = [CROP, *[IMAGE] * small**2, CROP_END]

    def image(generator: Generator, number: int) -> Media:
        before: list[int] = [[], [*crop, NEWLINE, *crop], [*crop, *crop]][number % 3]
        crops = 2 if before else 0
        tensors = {
            "pixel_values": torch.randn(1, 3, unit * s.side, unit * s.side, generator=generator),
            "num_local_patches": torch.tensor([crops]),
        }
        if crops:
            tensors["pixel_values_local"] = torch.randn(crops, 3, unit * small, unit * small, generator=generator)
        return Media([*before, BOI, *[IMAGE] * s.side**2, EOI], tensors)

    return model, InputMaker(s.vocab, image)
