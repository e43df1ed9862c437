"""Nemotron 3 Nano Omni: C-RADIO over packed patches, pixel shuffle, a decoder of Mamba-2, attention and MoE layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import BOS, EOS, IMAGE, PAD, SPECIAL, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI
from prunekit.models.tiny.builders.qwen2_vl import image_shape

KINDS = ("linear_attention", "moe", "full_attention")
"""Kinds of decoder layers, in turn: a layer has a Mamba-2 mixer, experts, or attention, and nothing else."""

AUDIO = SPECIAL[2]
"""Id of sound."""


def nemotron_h_omni(
    patch_size: int = 4, experts: int = 4, state: int = 8, chunk: int = 8, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Images of several sizes; the state of a Mamba head is `state` wide, and is computed in chunks of `chunk` tokens.

    There is an audio encoder, but no sound in the prompts. There are no videos: the model itself fails on them in
    transformers 5.23, where it concatenates what is one tensor.
    """
    from transformers import (
        NemotronH_Omni_Reasoning_V3,
        NemotronH_Omni_Reasoning_V3_Config,
        NemotronHConfig,
        ParakeetEncoderConfig,
        RadioConfig,
    )

    s = Sizes(**sizes)
    vision = RadioConfig(
        hidden_size=s.vision_hidden,
        num_hidden_layers=s.vision_layers,
        num_attention_heads=s.vision_heads,
        mlp_ratio=2.0,
        patch_size=patch_size,
        max_img_size=4 * s.side * patch_size,  # its table of positions is larger than the images, as the real one is
        video_temporal_patch_size=2,
    )
    text = NemotronHConfig(
        vocab_size=s.vocab,
        hidden_size=s.hidden,
        intermediate_size=s.intermediate,
        layers_block_type=[KINDS[n % len(KINDS)] for n in range(s.layers)],
        num_attention_heads=s.heads,
        num_key_value_heads=s.key_heads,
        head_dim=s.hidden // s.heads,
        mamba_num_heads=s.heads,
        mamba_head_dim=2 * s.hidden // s.heads,
        ssm_state_size=state,
        n_groups=s.key_heads,
        chunk_size=chunk,
        n_routed_experts=experts,
        moe_intermediate_size=s.intermediate // 2,
        moe_shared_expert_intermediate_size=s.intermediate,
        max_position_embeddings=8192,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    audio = ParakeetEncoderConfig(
        hidden_size=s.vision_hidden,
        num_hidden_layers=1,
        num_attention_heads=s.vision_heads,
        intermediate_size=2 * s.vision_hidden,
        subsampling_conv_channels=8,
        num_mel_bins=16,
    )
    audio.projection_hidden_size, audio.projection_bias = 2 * s.hidden, False
    config = NemotronH_Omni_Reasoning_V3_Config(
        vision_config=vision,
        text_config=text,
        audio_config=audio,
        vision_hidden_size=s.vision_hidden,
        projector_hidden_size=2 * s.hidden,
        image_token_id=IMAGE,
        audio_token_id=AUDIO,
    )

    def image(generator: Generator, number: int) -> Media:
        rows, columns = image_shape(s, number)
        pixels = torch.randn(4 * rows * columns, 3 * patch_size**2, generator=generator)
        grid = torch.tensor([[2 * rows, 2 * columns]])
        return Media([BOI, *[IMAGE] * (rows * columns), EOI], {"pixel_values": pixels, "image_grid_hw": grid})

    return random_model(NemotronH_Omni_Reasoning_V3, config, s), InputMaker(s.vocab, image)
