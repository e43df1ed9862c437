"""Gemma 4: a ViT over padded patch lists with pooling, decoders with sliding windows and shared keys and values."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import (
    FIRST_WORD,
    IMAGE,
    SPECIAL,
    VIDEO,
    InputMaker,
    Media,
    MediaMaker,
    Sizes,
    random_model,
)
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes, vision_sizes

AUDIO = SPECIAL[2]


def gemma4(window: int | None = None, shared: int | None = None, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """The small form (E2B): a vector per layer and token, `shared` last layers without own keys and values."""
    s = Sizes(**sizes)
    return build(
        s,
        window,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=s.vocab,
        num_kv_shared_layers=max(0, min(s.layers // 2, s.layers - 2)) if shared is None else shared,
        use_double_wide_mlp=True,
    )


def gemma4_moe(window: int | None = None, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """The large form (26B-A4B): experts beside the MLP, keys that are values, images that see themselves wholly."""
    s = Sizes(**sizes)
    return build(
        s,
        window,
        hidden_size_per_layer_input=0,
        enable_moe_block=True,
        num_experts=4,
        top_k_experts=2,
        moe_intermediate_size=s.intermediate // 2,
        attention_k_eq_v=True,
        num_global_key_value_heads=max(1, s.key_heads // 2),
        use_bidirectional_attention="vision",
    )


def build(
    s: Sizes, window: int | None, pooling: int = 2, patch_size: int = 4, **text: Any
) -> tuple[nn.Module, InputMaker]:
    """Every second layer has a sliding window of `window` tokens (one and a half images), the others see everything.

    Images 1 and 2 of a prompt are lower and narrower than the default one, their patch lists are padded. Videos have
    two frames of a quarter of the size.
    """
    from transformers import Gemma4Config, Gemma4ForConditionalGeneration, Gemma4TextConfig, Gemma4VisionConfig

    head_dim = s.hidden // s.heads
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(s.layers)]
    config = Gemma4Config(
        text_config=Gemma4TextConfig(
            **decoder_sizes(s, head_dim=head_dim, global_head_dim=2 * head_dim),
            sliding_window=window or 3 * s.side**2 // 2,
            layer_types=[*kinds[:-1], "full_attention"],
            tie_word_embeddings=False,
            **text,
        ),
        vision_config=Gemma4VisionConfig(
            **vision_sizes(s, num_key_value_heads=s.vision_heads, head_dim=s.vision_hidden // s.vision_heads),
            pooling_kernel_size=pooling,
            patch_size=patch_size,
            position_embedding_size=2 * s.side * pooling,
        ),
        audio_config=None,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
        boi_token_id=BOI,
        eoi_token_id=EOI,
        tie_word_embeddings=False,
    )
    model = random_model(Gemma4ForConditionalGeneration, config, s)

    def patches(generator: Generator, height: int, width: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Patches of `height` by `width` visual tokens and their (x, y), padded to those of `tokens` tokens."""
        pixels = torch.zeros(1, tokens * pooling**2, 3 * patch_size**2)
        positions = torch.full((1, tokens * pooling**2, 2), -1)
        grid = torch.cartesian_prod(torch.arange(height * pooling), torch.arange(width * pooling)).flip(-1)
        pixels[:, : len(grid)] = torch.rand(1, len(grid), 3 * patch_size**2, generator=generator)
        positions[:, : len(grid)] = grid
        return pixels, positions

    return model, InputMaker(s.vocab, *media(s, patches), extras=token_types)


Patches = Callable[[Generator, int, int, int], tuple[Tensor, Tensor]]
"""Makes pixels of rows x columns visual tokens and their positions, padded to a number of tokens."""


def media(s: Sizes, patches: Patches) -> tuple[MediaMaker, MediaMaker]:
    """Makers of images, the second and third lower and narrower than the first, and of videos of two small frames."""

    def image(generator: Generator, number: int) -> Media:
        height, width = [(s.side, s.side), (s.side // 2, s.side), (s.side, s.side - 1)][number % 3]
        pixels, positions = patches(generator, height, width, s.side**2)
        tokens = [BOI, *[IMAGE] * (height * width), EOI]
        return Media(tokens, {"pixel_values": pixels, "image_position_ids": positions})

    def video(generator: Generator, number: int, frames: int = 2) -> Media:
        edge = s.side // 2
        parts = [patches(generator, edge, edge, edge**2) for _ in range(frames)]
        tokens = [FIRST_WORD, BOI, *[VIDEO] * edge**2, EOI] * frames
        tensors = {
            "pixel_values_videos": torch.cat([pixels for pixels, _ in parts]),
            "video_position_ids": torch.cat([positions for _, positions in parts]),
            "num_frames_per_video": torch.tensor([frames]),
        }
        return Media(tokens, tensors)

    return image, video


def token_types(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """1 for images, 2 for videos, 0 for text."""
    return {"mm_token_type_ids": (ids == IMAGE).long() + 2 * (ids == VIDEO).long()}
