"""DeepSeek-VL with two encoders: SigLIP and SAM side by side, an aligner that concatenates channels, Llama."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import vision_sizes
from prunekit.models.tiny.builders.llava import llama


def deepseek_vl_hybrid(patch_size: int = 4, window: int = 3, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """SigLIP over side^2 patches and SAM over four times as many, brought to the same grid."""
    from transformers import (
        DeepseekVLHybridConfig,
        DeepseekVLHybridForConditionalGeneration,
        SamVisionConfig,
        SiglipVisionConfig,
    )

    s = Sizes(**sizes)
    tokens, edge = s.side**2, s.side * patch_size
    config = DeepseekVLHybridConfig(
        vision_config=SiglipVisionConfig(**vision_sizes(s), image_size=edge, patch_size=patch_size),
        high_res_vision_config=SamVisionConfig(
            **vision_sizes(s),
            mlp_dim=2 * s.vision_hidden,
            output_channels=s.vision_hidden // 2,
            image_size=2 * edge,
            patch_size=patch_size,
            window_size=window,
            global_attn_indexes=(s.vision_layers - 1,),
        ),
        text_config=llama(s),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    model = random_model(DeepseekVLHybridForConditionalGeneration, config, s)
    with torch.no_grad():
        model.get_parameter("model.high_res_vision_alpha").fill_(0.5)

    def image(generator: Generator, number: int) -> Media:
        low = torch.randn(1, 3, edge, edge, generator=generator)
        high = torch.randn(1, 3, 2 * edge, 2 * edge, generator=generator)
        return Media([IMAGE] * tokens, {"pixel_values": low, "high_res_pixel_values": high})

    return model, InputMaker(s.vocab, image)
