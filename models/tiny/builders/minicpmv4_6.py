"""MiniCPM-V 4.6: a packed SigLIP that shrinks fourfold half-way, a merger, Qwen3.5 with linear attention."""

from __future__ import annotations

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
    concatenate,
    random_model,
)
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes, vision_sizes
from prunekit.models.tiny.builders.qwen3_5 import remembering

SLICE, SLICE_END, ID, ID_END = SPECIAL[2:6]


def minicpmv4_6(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Every second layer has full attention, the others are linear; a visual token stands for 4 x 4 patches.

    The default image is whole; image 1 of a prompt is lower; image 2 is low and cut into two slices besides.
    """
    from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration
    from transformers.models.minicpmv4_6.configuration_minicpmv4_6 import MiniCPMV4_6VisionConfig

    s = Sizes(**sizes)
    config = MiniCPMV4_6Config(vision_config=MiniCPMV4_6VisionConfig(**encoder(s, patch_size)), **others(s))
    model = remembering(random_model(MiniCPMV4_6ForConditionalGeneration, config, s))
    return model, InputMaker(s.vocab, *media(s, patch_size), join=packed)


def encoder(s: Sizes, patch_size: int, merge: int = 4) -> dict[str, Any]:
    """An encoder for `side` x `side` tokens of `merge` x `merge` patches."""
    return vision_sizes(s, image_size=merge * s.side * patch_size, patch_size=patch_size)


def others(s: Sizes) -> dict[str, Any]:
    """What the configurations of all MiniCPM-V have besides the encoder's."""
    from transformers import Qwen3_5TextConfig

    head_dim = s.hidden // s.heads
    pairs = head_dim // 4
    text = Qwen3_5TextConfig(
        **decoder_sizes(s, head_dim=head_dim),
        layer_types=["full_attention" if (s.layers - layer) % 2 else "linear_attention" for layer in range(s.layers)],
        linear_key_head_dim=head_dim,
        linear_value_head_dim=head_dim,
        linear_num_key_heads=s.key_heads,
        linear_num_value_heads=s.heads,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [pairs - pairs // 3 - (pairs + 1) // 3, (pairs + 1) // 3, pairs // 3],
        },
    )
    return {
        "text_config": text,
        "insert_layer_id": (s.vision_layers - 1) // 2,
        "image_token_id": IMAGE,
        "video_token_id": VIDEO,
    }


def media(s: Sizes, patch_size: int, merge: int = 4, frames: int = 2) -> tuple[MediaMaker, MediaMaker]:
    """Makers of images and of videos of `frames` frames, whose visual tokens stand for `merge` x `merge` patches."""

    def patches(generator: Generator, grids: list[tuple[int, int]]) -> dict[str, Tensor]:
        count = sum(merge**2 * rows * columns for rows, columns in grids)
        return {
            "pixel_values": torch.randn(1, 3, patch_size, count * patch_size, generator=generator),
            "target_sizes": merge * torch.tensor(grids, dtype=torch.int32),
        }

    def image(generator: Generator, number: int) -> Media:
        low, half = (s.side // 2, s.side), (s.side // 2, s.side // 2)
        whole, *slices = [[(s.side, s.side)], [low], [low, half, half]][number % 3]
        tokens = [ID, FIRST_WORD + number, ID_END, BOI, *[IMAGE] * (whole[0] * whole[1]), EOI]
        for rows, columns in slices:
            tokens += [SLICE, *[IMAGE] * (rows * columns), SLICE_END]
        return Media(tokens, patches(generator, [whole, *slices]))

    def video(generator: Generator, number: int) -> Media:
        edge = s.side // 2
        tensors = patches(generator, [(edge, edge)] * frames)
        tokens = [ID, FIRST_WORD + number, ID_END, *[BOI, *[VIDEO] * edge**2, EOI] * frames]
        return Media(tokens, {f"{name}_videos": tensor for name, tensor in tensors.items()})

    return image, video


def packed(rows: list[list[Media]]) -> dict[str, Tensor]:
    """All patches one beside the other, [1, 3, patch size, width], all sizes one below the other."""
    turned = [
        [Media([], {name: turn(name, item.tensors[name]) for name in item.tensors}) for item in row] for row in rows
    ]
    return {name: turn(name, tensor) for name, tensor in concatenate(turned).items()}


def turn(name: str, tensor: Tensor) -> Tensor:
    """Patches with their first and last axes exchanged."""
    return tensor.transpose(0, -1) if "pixel" in name else tensor
