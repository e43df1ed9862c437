"""Qwen4-Exp: the ViT of Qwen3-VL, several residual streams, delta nets, sparse attention, experts, hashed n-grams."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.models.tiny.builders.common import InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.qwen2_vl import placeholders
from prunekit.models.tiny.builders.qwen3_5 import experts, language, remembering
from prunekit.models.tiny.builders.qwen3_vl import encoder, inputs


def qwen4_exp(
    patch_size: int = 2, full_every: int = 4, convolution: int = 4, block: int = 4, hidden: int = 128, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Every `full_every`-th decoder layer has attention, to as many tokens as an image has, in blocks of `block`.

    The others are recurrent; embeddings of hashed n-grams enter the first of them.
    """
    from transformers import Qwen4ExpConfig, Qwen4ExpForConditionalGeneration
    from transformers.models.qwen4_exp.configuration_qwen4_exp import Qwen4ExpTextConfig, Qwen4ExpVisionConfig

    s = Sizes(**sizes, hidden=hidden)
    decoder = language(s, full_every, convolution)
    recurrent = [n for n, kind in enumerate(decoder["layer_types"]) if kind == "linear_attention"]
    text = Qwen4ExpTextConfig(
        **decoder,
        **experts(s),
        hc_count=2,
        hc_lowrank=16,
        ple_layer_ids=[n + 1 for n in recurrent[:1]],  # counted from one
        heads_per_ngram=2,
        ngram_vocab_size_base=s.vocab,
        make_ngram_vocab_size_divisible_by=8,
        indexer_n_heads=8,  # blocks without a positive score in any head tie: these leave few
        indexer_kv_heads=1,
        indexer_head_dim=16,
        indexer_budget=max(1, s.side**2 // block) * block,
        indexer_compress_ratio=block,
    )
    vision = Qwen4ExpVisionConfig(**encoder(s, patch_size))
    config = Qwen4ExpConfig(vision_config=vision, text_config=text, **placeholders())
    return remembering(random_model(Qwen4ExpForConditionalGeneration, config, s)), inputs(s, patch_size)
