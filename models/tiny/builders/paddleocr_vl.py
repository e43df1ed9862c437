"""PaddleOCR-VL: a ViT over packed patches in raster order, a projector merging 2 x 2, ERNIE, multimodal RoPE."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.models.tiny.builders.common import InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.qwen2_vl import decoder, images, mrope, placeholders, rope, token_types


def paddleocr_vl(patch_size: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Images of `side` x `side` and other numbers of visual tokens, each made of 2 x 2 patches of `patch_size`."""
    from transformers import PaddleOCRVLConfig, PaddleOCRVLForConditionalGeneration
    from transformers.models.paddleocr_vl.configuration_paddleocr_vl import PaddleOCRTextConfig, PaddleOCRVisionConfig

    s = Sizes(**sizes)
    vision = PaddleOCRVisionConfig(
        hidden_size=s.vision_hidden,
        intermediate_size=2 * s.vision_hidden,
        num_hidden_layers=s.vision_layers,
        num_attention_heads=s.vision_heads,
        image_size=patch_size * s.side,
        patch_size=patch_size,
    )
    text = PaddleOCRTextConfig(**decoder(s), head_dim=s.hidden // s.heads, rope_parameters=rope(mrope(s)))
    config = PaddleOCRVLConfig(vision_config=vision, text_config=text, **placeholders())
    model = random_model(PaddleOCRVLForConditionalGeneration, config, s)
    return model, InputMaker(s.vocab, images(s, [3, patch_size, patch_size]), extras=token_types)
