"""GLM-5.3-Flash: GLM's ViT, several residual streams, Kimi delta attention, sparse latent attention, experts."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.models.tiny.builders.common import InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.glm4v import encoder, ids, inputs
from prunekit.models.tiny.builders.qwen2_vl import decoder


def glm5_next(
    patch_size: int = 2,
    full_every: int = 4,
    convolution: int = 4,
    pool: int = 4,
    streams: int = 2,
    experts: int = 4,
    experts_per_token: int = 2,
    dense_layers: int = 1,
    **sizes: Any,
) -> tuple[nn.Module, InputMaker]:
    """Every `full_every`-th decoder layer has attention, to as many tokens as an image has, in pools of `pool`.

    The others are recurrent. No layer knows positions; all but the first `dense_layers` have experts.
    """
    from transformers import Glm5NextConfig, Glm5NextForConditionalGeneration
    from transformers.models.glm5_next.configuration_glm5_next import Glm5NextTextConfig, Glm5NextVisionConfig

    s = Sizes(**sizes)
    every, head_dim = min(full_every, s.layers), s.hidden // s.heads
    text = Glm5NextTextConfig(
        **{**decoder(s), "num_key_value_heads": s.heads},
        layer_types=["linear_attention" if (n + 1) % every else "indexed_attention" for n in range(s.layers)],
        mlp_layer_types=["dense" if n < dense_layers else "sparse" for n in range(s.layers)],
        moe_intermediate_size=max(1, s.intermediate // 2),
        n_routed_experts=experts,
        num_experts_per_tok=experts_per_token,
        kv_lora_rank=s.hidden // 2,
        q_lora_rank=s.hidden // 2,
        qk_nope_head_dim=head_dim,
        v_head_dim=head_dim,
        index_topk=max(1, s.side**2 // pool) * pool,
        index_kpool=pool,
        index_head_dim=16,
        index_n_heads=8,  # pools without a positive score in any head tie: these leave few
        linear_head_dim=head_dim,
        linear_num_heads=s.heads,
        linear_conv_kernel_dim=convolution,
        hc_mult=streams,
    )
    vision = Glm5NextVisionConfig(**encoder(s, patch_size), projection_intermediate_size=2 * s.hidden)
    config = Glm5NextConfig(vision_config=vision, text_config=text, **ids())
    return random_model(Glm5NextForConditionalGeneration, config, s), inputs(s, patch_size)
