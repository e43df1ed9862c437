"""MiniMax M3: a ViT over packed patches, a projector merging 2 x 2, a MoE decoder that attends to chosen blocks."""

from __future__ import annotations

from typing import Any

from torch import Generator, nn

from prunekit.models.tiny.builders.common import FIRST_WORD, IMAGE, VIDEO, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes
from prunekit.models.tiny.builders.qwen2_vl import END, START, images, pixels, video_shape


def minimax_m3_vl(
    block: int = 8, blocks: int = 2, sparse: bool = True, patch_size: int = 2, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Layers but the first have experts; if `sparse`, a query there sees the best `blocks` of `block` keys and its own.

    Such layers cannot be pruned: a subject of refusals.
    """
    from transformers import (
        MiniMaxM3SparseForConditionalGeneration,
        MiniMaxM3VLConfig,
        MiniMaxM3VLTextConfig,
        MiniMaxM3VLVisionConfig,
    )

    s = Sizes(**sizes)
    head_dim, others = s.hidden // s.heads, s.layers - 1
    text = MiniMaxM3VLTextConfig(
        **decoder_sizes(s, head_dim=head_dim),
        dense_intermediate_size=2 * s.intermediate,
        shared_intermediate_size=s.intermediate,
        num_local_experts=4,
        num_experts_per_tok=2,
        mlp_layer_types=["dense", *["sparse"] * others],
        layer_types=["full_attention", *["minimax_m3_sparse" if sparse else "full_attention"] * others],
        index_n_heads=s.key_heads,
        index_head_dim=head_dim,
        index_block_size=block,
        index_topk_blocks=blocks,
        rope_parameters={"rope_type": "default", "rope_theta": 5e6, "partial_rotary_factor": 0.5},
    )
    config = MiniMaxM3VLConfig(
        vision_config=MiniMaxM3VLVisionConfig(**vision_sizes(s), patch_size=patch_size),
        text_config=text,
        projector_hidden_size=s.hidden,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )
    model = random_model(MiniMaxM3SparseForConditionalGeneration, config, s)
    patch = [3 * 2 * patch_size**2]

    def video(generator: Generator, number: int) -> Media:
        frames, height, width = video_shape(s, number)
        tokens = [FIRST_WORD, START, *[VIDEO] * (height * width), END] * frames
        return Media(tokens, pixels(generator, (frames, height, width), patch, kind="video"))

    return model, InputMaker(s.vocab, images(s, patch), video)
