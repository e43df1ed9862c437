"""HyperCLOVA X SEED (vision, V2): the encoder of Qwen2.5-VL, a linear projector, a decoder with norms on both sides."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.models.tiny.builders.common import InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.qwen2_5_vl import encoder
from prunekit.models.tiny.builders.qwen2_vl import decoder, images, placeholders, videos


def hyperclovax_vision_v2(patch_size: int = 2, vision_layers: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """The factors of embeddings, attention, residuals and logits are ours; none is what a plain decoder has."""
    from transformers import (
        HyperCLOVAXConfig,
        HyperCLOVAXVisionV2Config,
        HyperCLOVAXVisionV2ForConditionalGeneration,
    )
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLVisionConfig

    s = Sizes(**sizes, vision_layers=vision_layers)
    vision = Qwen2_5_VLVisionConfig(**{**encoder(s, patch_size), "out_hidden_size": 2 * s.hidden})
    text = HyperCLOVAXConfig(
        **decoder(s),
        use_post_norm=True,
        embedding_multiplier=2.0,
        attention_multiplier=0.5 * (s.hidden // s.heads) ** -0.5,
        residual_multiplier=0.75,
        logits_scaling=0.5,
    )
    config = HyperCLOVAXVisionV2Config(vision_config=vision, text_config=text, **placeholders())
    patch = [3 * 2 * patch_size**2]
    model = random_model(HyperCLOVAXVisionV2ForConditionalGeneration, config, s)
    return model, InputMaker(s.vocab, images(s, patch), videos(s, patch))
