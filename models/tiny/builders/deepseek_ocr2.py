"""DeepSeek-OCR 2: SAM, an encoder with a learned query for each visual token, separators, DeepSeek-V2's experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes


def deepseek_ocr2(patch_size: int = 2, window: int = 6, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Every second image of a prompt has two tiles before the whole image; a separator is the last placeholder."""
    from transformers import DeepseekOcr2Config, DeepseekOcr2ForConditionalGeneration
    from transformers.models.deepseek_ocr2.configuration_deepseek_ocr2 import (
        DeepseekOcr2SamVisionConfig,
        DeepseekOcr2TextConfig,
        DeepseekOcr2VisionConfig,
        DeepseekOcr2VisionEncoderConfig,
    )

    s = Sizes(**sizes)
    tokens, edge = s.side**2, 4 * s.side * patch_size
    encoder = DeepseekOcr2VisionEncoderConfig(**vision_sizes(s), num_key_value_heads=max(1, s.vision_heads // 2))
    config = DeepseekOcr2Config(
        vision_config=DeepseekOcr2VisionConfig(
            sam_config=DeepseekOcr2SamVisionConfig(**sam(s, patch_size, window)), encoder_config=encoder
        ),
        text_config=DeepseekOcr2TextConfig(**decoder_sizes(s, **experts(s))),
        image_token_id=IMAGE,
    )
    model: Any = random_model(DeepseekOcr2ForConditionalGeneration, config, s)
    tower = model.model.vision_tower
    for table in (tower.query_768_resolution, tower.query_1024_resolution):  # theirs are of 144 and 256 tokens
        table.weight = nn.Parameter(torch.randn(tokens, s.vision_hidden) * s.std)

    def image(generator: Generator, number: int) -> Media:
        tiles = 2 * (number % 2)
        tensors = {
            "pixel_values": torch.randn(1, 3, edge, edge, generator=generator),
            "num_local_patches": torch.tensor([tiles]),
        }
        if tiles:
            tensors["pixel_values_local"] = torch.randn(tiles, 3, edge, edge, generator=generator)
        return Media([IMAGE] * ((tiles + 1) * tokens + 1), tensors)

    return model, InputMaker(s.vocab, image)


def sam(s: Sizes, patch_size: int, window: int) -> dict[str, Any]:
    """SAM over 4 x 4 patches a visual token, with windows in all layers but the last, and two strided convolutions."""
    return {
        **vision_sizes(s),
        "mlp_dim": 2 * s.vision_hidden,
        "output_channels": s.vision_hidden // 2,
        "downsample_channels": [s.vision_hidden, s.vision_hidden],
        "image_size": 4 * s.side * patch_size,
        "patch_size": patch_size,
        "window_size": window,
        "global_attn_indexes": (s.vision_layers - 1,),
    }


def experts(s: Sizes) -> dict[str, Any]:
    """Sizes of plain attention, and of experts in all layers but the first."""
    return {
        "num_key_value_heads": s.heads,
        "mlp_layer_types": ["dense", *["sparse"] * (s.layers - 1)],
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": s.intermediate // 2,
    }
