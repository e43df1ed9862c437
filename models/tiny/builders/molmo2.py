"""Molmo 2: a ViT, attention pooling over its layers' features, a decoder; image tokens see one another both ways."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import pad

from prunekit.models.tiny.builders.common import (
    FIRST_WORD,
    IMAGE,
    SPECIAL,
    InputMaker,
    Media,
    Sizes,
    concatenate,
    random_model,
)
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes

LOW_START, START, END, COLUMN, FRAME_START, FRAME_END = SPECIAL[:6]
"""Marks of the small image, the large one, ends of their rows, and frames."""


def molmo2(
    olmo: bool = False, patch_size: int = 4, margin: int = 1, frames: int = 2, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Images are shown small and large; the large one is cut into crops that overlap by `2 * margin` patches.

    2 x 2 patches of an image or 3 x 3 of a frame are a token. Image 0 of a prompt has one crop, images 1 and 2 have
    two, side by side and one below the other. Every other layer's rotary embedding is scaled; `olmo` has norms behind
    attention and MLP, and over all heads at once, as Molmo2-O.
    """
    from transformers import Molmo2Config, Molmo2ForConditionalGeneration
    from transformers.models.molmo2.configuration_molmo2 import (
        Molmo2AdapterConfig,
        Molmo2TextConfig,
        Molmo2VisionConfig,
    )

    s = Sizes(**sizes)
    crop = 2 * s.side - 1
    heads: dict[str, Any] = {"num_key_value_heads": s.vision_heads, "head_dim": s.vision_hidden // s.vision_heads}
    vision = Molmo2VisionConfig(**vision_sizes(s), **heads, image_size=[crop * patch_size] * 2, patch_size=patch_size)
    adapter = Molmo2AdapterConfig(
        hidden_size=s.vision_hidden,
        num_attention_heads=s.vision_heads,
        **heads,
        intermediate_size=s.intermediate,
        text_hidden_size=s.hidden,
        vision_feature_layer=[s.vision_layers - 1, (s.vision_layers - 1) // 2],
    )
    text = Molmo2TextConfig(
        **decoder_sizes(s, head_dim=s.hidden // s.heads),
        additional_vocab_size=16,
        qk_norm_type="olmo" if olmo else "qwen3",
        norm_after=olmo,
        rope_parameters={
            "rope_type": "yarn",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 1024,
        },
        rope_scaling_layers=list(range(1, s.layers, 2)),
    )
    config = Molmo2Config(
        vision_config=vision,
        adapter_config=adapter,
        text_config=text,
        image_patch_id=IMAGE,
        image_start_token_id=START,
        low_res_image_start_token_id=LOW_START,
        image_end_token_id=END,
        frame_start_token_id=FRAME_START,
        frame_end_token_id=FRAME_END,
    )
    model = random_model(Molmo2ForConditionalGeneration, config, s)
    small = torch.arange(crop**2).reshape(crop, crop)

    def image(generator: Generator, number: int) -> Media:
        rows, columns = [(1, 1), (1, 2), (2, 1)][number % 3]
        low, high = windows(small, 2), windows(overlapping(rows, columns, crop, margin) + crop**2, 2)
        tokens = [
            *[LOW_START, *[*[IMAGE] * low.shape[1], COLUMN] * low.shape[0], END],
            *[START, *[*[IMAGE] * high.shape[1], COLUMN] * high.shape[0], END],
        ]
        tensors = {
            "pixel_values": torch.randn(1 + rows * columns, crop**2, 3 * patch_size**2, generator=generator),
            "image_token_pooling": torch.cat([low.flatten(0, 1), high.flatten(0, 1)]),
            "image_grids": torch.tensor([[*low.shape[:2], *high.shape[:2]]]),
            "image_num_crops": torch.tensor([1 + rows * columns]),
        }
        return Media(tokens, tensors)

    def video(generator: Generator, number: int) -> Media:
        frame = windows(small, 3)
        shown = [FRAME_START, *[IMAGE] * frame.shape[:2].numel(), FRAME_END]
        pooling = torch.cat([torch.where(frame < 0, frame, frame + n * crop**2) for n in range(frames)])
        tensors = {
            "pixel_values_videos": torch.randn(frames, crop**2, 3 * patch_size**2, generator=generator),
            "video_token_pooling": pooling.flatten(0, 1),
            "video_grids": torch.tensor([[frames, *frame.shape[:2]]]),
        }
        return Media([token for n in range(frames) for token in [FIRST_WORD + n % 2, *shown]], tensors)

    def token_types(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        marks = torch.tensor([IMAGE, LOW_START, START, END, COLUMN, FRAME_START, FRAME_END])
        return {"mm_token_type_ids": torch.isin(ids, marks).long()}

    return model, InputMaker(s.vocab, image, video, join=shifted, extras=token_types)


def windows(patches: Tensor, pool: int) -> Tensor:
    """The patches that each token is pooled from, [rows, columns, pool * pool], -1 where there are none."""
    down, right = -patches.shape[0] % pool, -patches.shape[1] % pool
    filled = pad(patches, (right // 2, (right + 1) // 2, down // 2, (down + 1) // 2), value=-1)
    blocks: Tensor = filled.unflatten(1, (-1, pool)).unflatten(0, (-1, pool)).transpose(1, 2)
    return blocks.flatten(2)


def overlapping(rows: int, columns: int, crop: int, margin: int) -> Tensor:
    """Where the patches of a large image are among those of its crops, whose inner margins are left out."""
    index = torch.arange(rows * columns * crop**2).reshape(rows, columns, crop, crop)
    index[1:, :, :margin] = -1
    index[:-1, :, crop - margin :] = -1
    index[:, 1:, :, :margin] = -1
    index[:, :-1, :, crop - margin :] = -1
    index = index.transpose(1, 2).flatten()
    return index[index >= 0].reshape(rows * (crop - 2 * margin) + 2 * margin, -1)


def shifted(media: list[list[Media]]) -> dict[str, Tensor]:
    """Concatenates, and counts the patches to pool from the first of all images (or videos) on."""
    inputs = concatenate(media)
    for pixels, pooling in ("pixel_values", "image_token_pooling"), ("pixel_values_videos", "video_token_pooling"):
        items = [item.tensors for row in media for item in row if pooling in item.tensors]
        before, parts = 0, []
        for item in items:
            parts.append(torch.where(item[pooling] < 0, item[pooling], item[pooling] + before))
            before += item[pixels].shape[:2].numel()
        inputs |= {pooling: torch.cat(parts)} if parts else {}
    return inputs
