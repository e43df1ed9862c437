"""HunYuan-VL (dense): a packed ViT, a convolution that halves the grid, line ends among the features, 4-D positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes, vision_sizes


def hunyuan_vl(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """An image is start, rows of tokens with an end each, and end; all of these are placeholders.

    Images 1 and 2 of a prompt are lower and narrower than the default one.
    """
    from transformers import HunYuanVLConfig, HunYuanVLForConditionalGeneration
    from transformers.models.hunyuan_vl.configuration_hunyuan_vl import HunYuanVLTextConfig, HunYuanVLVisionConfig

    s = Sizes(**sizes)
    head_dim = s.hidden // s.heads
    section = head_dim // 8  # the last axis has none: it counts images through a batch, so that rows would not be alike
    text = HunYuanVLTextConfig(
        **decoder_sizes(s, head_dim=head_dim),
        tie_word_embeddings=False,
        rope_parameters={
            "rope_type": "dynamic",
            "rope_theta": 10000.0,
            "alpha": 1000.0,
            "factor": 1.0,
            "mrope_section": [head_dim // 2 - 2 * section, section, section, 0],
        },
    )
    config = HunYuanVLConfig(
        vision_config=HunYuanVLVisionConfig(
            **vision_sizes(s),
            out_hidden_size=s.hidden,
            patch_size=patch_size,
            max_image_size=2 * s.side * patch_size,
            spatial_merge_size=2,
        ),
        text_config=text,
        image_token_id=IMAGE,
        im_start_id=BOI,
        im_end_id=EOI,
        tie_word_embeddings=False,
    )
    model = random_model(HunYuanVLForConditionalGeneration, config, s)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "patch_merger.image_" in name:
                parameter.normal_(0, s.std)

    def image(generator: Generator, number: int) -> Media:
        rows, columns = [(s.side, s.side), (s.side // 2, s.side), (s.side, s.side - 1)][number % 3]
        pixels = torch.randn(4 * rows * columns, 3 * patch_size**2, generator=generator)
        grid = torch.tensor([[1, 2 * rows, 2 * columns]])
        tokens = [BOI, *[IMAGE] * (rows * (columns + 1) + 2), EOI]
        return Media(tokens, {"pixel_values": pixels, "image_grid_thw": grid})

    return model, InputMaker(s.vocab, image, extras=token_types)


def token_types(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """1 for images, 0 for text."""
    return {"mm_token_type_ids": (ids == IMAGE).long()}
