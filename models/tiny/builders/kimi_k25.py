"""Kimi K2.5: a ViT over packed patches, merged 2 x 2 and over frames, DeepSeek-V3 with latent attention and experts."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import (
    FIRST_WORD,
    IMAGE,
    SPECIAL,
    VIDEO,
    InputMaker,
    Media,
    Sizes,
    random_model,
)
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes
from prunekit.models.tiny.builders.qwen2_vl import END, START, image_shape, pixels, placeholders, video_shape

CONTENT = SPECIAL[2]
"""What is written between the word for `image` or `video` and the placeholders."""


def kimi_k25(patch_size: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Images of `side` x `side` and other numbers of visual tokens, each made of 2 x 2 patches of `patch_size`.

    A chunk of a video has one frame: releases before transformers 5.24 fail on more.
    """
    from transformers import DeepseekV3Config, Kimi_K25Config, Kimi_K25ForConditionalGeneration
    from transformers.models.kimi_k25.configuration_kimi_k25 import Kimi_K25VisionConfig

    s = Sizes(**sizes)
    vision = Kimi_K25VisionConfig(
        **vision_sizes(s), patch_size=patch_size, pos_emb_height=2 * s.side, pos_emb_width=2 * s.side
    )
    text = DeepseekV3Config(**decoder_sizes(s, **latent(s)), q_lora_rank=s.hidden // 2, num_mtp_layers=0)
    config = Kimi_K25Config(
        vision_config=vision,
        text_config=text,
        projection_hidden_size=s.vision_hidden,
        tie_word_embeddings=False,
        **placeholders(),
    )
    model = random_model(Kimi_K25ForConditionalGeneration, config, s)
    patch = [3, patch_size, patch_size]

    def image(generator: Generator, number: int) -> Media:
        height, width = image_shape(s, number)
        return Media(_marked(IMAGE, height * width), pixels(generator, (1, height, width), patch))

    def video(generator: Generator, number: int) -> Media:
        chunks, height, width = video_shape(s, number)
        tensors = pixels(generator, (chunks, height, width), patch, kind="video")
        tensors["video_grid_thw"] = torch.tensor([[1, 2 * height, 2 * width]] * chunks)
        return Media(chunks * [FIRST_WORD + 1, *_marked(VIDEO, height * width)], tensors)

    return model, InputMaker(s.vocab, image, video)


def latent(s: Sizes) -> dict[str, Any]:
    """Sizes of latent attention, half of whose channels are rotated, and of experts in all layers but the first."""
    half = s.hidden // s.heads // 2
    return {
        "num_key_value_heads": s.heads,
        "kv_lora_rank": s.hidden // 2,
        "qk_rope_head_dim": half,
        "qk_nope_head_dim": half,
        "v_head_dim": 2 * half,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "moe_intermediate_size": s.intermediate // 2,
        "n_group": 1,
        "topk_group": 1,
    }


def _marked(placeholder: int, tokens: int) -> list[int]:
    return [START, FIRST_WORD, CONTENT, *[placeholder] * tokens, END]
