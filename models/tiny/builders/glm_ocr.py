"""GLM-OCR: a ViT with rotary embeddings and normed queries and keys, 2 x 2 convolution, a GLM with wide heads."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.models.tiny.builders.common import InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.glm4v import encoder, ids, inputs
from prunekit.models.tiny.builders.qwen2_vl import decoder, mrope, rope

WIDER = 2
"""How many times as many channels a head has as the states have for each head."""


def glm_ocr(patch_size: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """All channels of a head are rotated; time, height and width all have frequencies."""
    from transformers import GlmOcrConfig, GlmOcrForConditionalGeneration
    from transformers.models.glm_ocr.configuration_glm_ocr import GlmOcrTextConfig, GlmOcrVisionConfig

    s = Sizes(**sizes)
    language = {**decoder(s), "head_dim": WIDER * (s.hidden // s.heads)}
    text = GlmOcrTextConfig(**language, rope_parameters=rope(mrope(s, rotated=WIDER)))
    config = GlmOcrConfig(vision_config=GlmOcrVisionConfig(**encoder(s, patch_size)), text_config=text, **ids())
    return random_model(GlmOcrForConditionalGeneration, config, s), inputs(s, patch_size)
