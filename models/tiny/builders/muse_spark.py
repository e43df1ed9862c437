"""Muse Spark: the encoder and projector of Muse Glimmer, its decoder with experts and gated residuals, audio."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.models.tiny.builders.common import SPECIAL, InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.muse_glimmer import around, encoder, inputs, language

AUDIO = SPECIAL[3]


def muse_spark(patch_size: int = 2, window: int | None = None, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Experts, which work at half of the width, in all layers but the first; windows as in Muse Glimmer."""
    from transformers import MuseSparkConfig, MuseSparkForConditionalGeneration
    from transformers.models.muse_spark.configuration_muse_spark import (
        MuseSparkAudioConfig,
        MuseSparkTextConfig,
        MuseSparkVisionConfig,
    )

    s = Sizes(**sizes)
    text = MuseSparkTextConfig(
        **language(s, window),
        num_local_experts=4,
        num_experts_per_tok=2,
        moe_hidden_size=s.hidden // 2,
        moe_intermediate_size=s.intermediate // 2,
        mlp_layer_types=["dense", *["sparse"] * (s.layers - 1)],
    )
    audio = MuseSparkAudioConfig(
        patch_sizes=(4, 2), hidden_sizes=(8, 16), depths=(1, 1), num_hidden_layers=2, out_hidden_size=s.hidden
    )
    config = MuseSparkConfig(
        text_config=text,
        vision_config=MuseSparkVisionConfig(**encoder(s, patch_size)),
        audio_config=audio,
        audio_token_id=AUDIO,
        **around(s),
    )
    return random_model(MuseSparkForConditionalGeneration, config, s), inputs(s, patch_size)
