"""DiffusionGemma: Gemma 4 as an encoder, a decoder that denoises a canvas. A subject of refusals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes, vision_sizes
from prunekit.models.tiny.builders.gemma4 import token_types


def diffusion_gemma(
    canvas: int = 8, window: int | None = None, pooling: int = 2, patch_size: int = 4, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """The decoder reads the encoder's KV cache and has its weights; `canvas` tokens are denoised at a time."""
    from transformers import (
        DiffusionGemmaConfig,
        DiffusionGemmaForBlockDiffusion,
        DiffusionGemmaTextConfig,
        Gemma4VisionConfig,
    )

    s = Sizes(**sizes)
    head_dim, shared_heads = s.hidden // s.heads, max(1, s.key_heads // 2)
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(s.layers)]
    config = DiffusionGemmaConfig(
        text_config=DiffusionGemmaTextConfig(
            **decoder_sizes(
                s, head_dim=head_dim, global_head_dim=2 * head_dim, num_global_key_value_heads=shared_heads
            ),
            sliding_window=window or 3 * s.side**2 // 2,
            layer_types=[*kinds[:-1], "full_attention"],
            use_bidirectional_attention="vision",
            num_experts=4,
            top_k_experts=2,
            moe_intermediate_size=s.intermediate // 2,
        ),
        vision_config=Gemma4VisionConfig(
            **vision_sizes(s, num_key_value_heads=s.vision_heads, head_dim=s.vision_hidden // s.vision_heads),
            pooling_kernel_size=pooling,
            patch_size=patch_size,
            position_embedding_size=2 * s.side * pooling,
        ),
        image_token_id=IMAGE,
        boi_token_id=BOI,
        eoi_token_id=EOI,
        canvas_length=canvas,
    )
    model = random_model(DiffusionGemmaForBlockDiffusion, config, s)
    edge = torch.arange(s.side * pooling)

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.rand(1, len(edge) ** 2, 3 * patch_size**2, generator=generator)
        positions = torch.cartesian_prod(edge, edge).flip(-1)[None]
        tensors = {"pixel_values": pixels, "image_position_ids": positions}
        return Media([BOI, *[IMAGE] * s.side**2, EOI], tensors)

    return model, InputMaker(s.vocab, image, extras=token_types)
