"""Qwen2.5-VL: a ViT whose layers attend within windows, save some, 2 x 2 merging, Qwen2 with multimodal RoPE."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.qwen2_vl import decoder, images, mrope, placeholders, rope, token_types, videos


def qwen2_5_vl(
    patch_size: int = 2, window: int | None = None, full_every: int = 2, vision_layers: int = 4, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Windows of `window` x `window` visual tokens; every `full_every`-th vision layer attends to the whole image.

    Args:
        patch_size: edge of a patch; each visual token is made of 2 x 2 of them.
        window: by default half of the image's edge, and four at most, as in the released models.
        full_every: with the default number of vision layers the last and the second attend to everything.
        vision_layers: see `Sizes`.
        sizes: see `Sizes`.
    """
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig

    s = Sizes(**sizes, vision_layers=vision_layers)
    vision = Qwen2_5_VLVisionConfig(**encoder(s, patch_size, window, full_every))
    text = Qwen2_5_VLTextConfig(**decoder(s), rope_parameters=rope(mrope(s)))
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text, **placeholders())
    patch = [3 * 2 * patch_size**2]

    def video(generator: Generator, number: int) -> Media:
        plain = videos(s, patch)(generator, number)
        return Media(plain.tokens, {**plain.tensors, "second_per_grid_ts": torch.tensor([0.5 * (number + 1)])})

    model = random_model(Qwen2_5_VLForConditionalGeneration, config, s)
    return model, InputMaker(s.vocab, images(s, patch), video, extras=token_types)


def encoder(s: Sizes, patch_size: int, window: int | None = None, full_every: int = 2) -> dict[str, Any]:
    """A vision encoder most of whose layers attend within windows; the arguments are those of `qwen2_5_vl`."""
    edge = min(4, max(1, s.side // 2)) if window is None else window
    return {
        "depth": s.vision_layers,
        "hidden_size": s.vision_hidden,
        "num_heads": s.vision_heads,
        "intermediate_size": 2 * s.vision_hidden,
        "out_hidden_size": s.hidden,
        "patch_size": patch_size,
        "window_size": edge * 2 * patch_size,
        "fullatt_block_indexes": list(range(full_every - 1, s.vision_layers, full_every)),
    }
