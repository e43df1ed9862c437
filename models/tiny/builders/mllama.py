"""Llama 3.2 Vision: images enter by cross-attention, which cannot be pruned: a subject of refusals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes
from prunekit.models.tiny.builders.idefics2 import stack


def mllama(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Two tiles at most, of which the default image fills one.

    Tokens before the first image look at everything, padding too: rows are as alone only with equally many images.
    """
    from transformers import MllamaConfig, MllamaForConditionalGeneration
    from transformers.models.mllama.configuration_mllama import MllamaTextConfig, MllamaVisionConfig

    s = Sizes(**sizes)
    edge = s.side * patch_size
    config = MllamaConfig(
        vision_config=MllamaVisionConfig(
            **vision_sizes(s),
            num_global_layers=1,
            vision_output_dim=2 * s.vision_hidden,
            intermediate_layers_indices=[1],
            image_size=edge,
            patch_size=patch_size,
            max_num_tiles=2,
            supported_aspect_ratios=[[1, 1], [1, 2]],
        ),
        text_config=MllamaTextConfig(
            **decoder_sizes(s),
            cross_attention_layers=[1],
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        ),
        image_token_index=IMAGE,
    )
    model = random_model(MllamaForConditionalGeneration, config, s)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gate" in name and "proj" not in name:
                parameter.fill_(0.5)

    def image(generator: Generator, number: int) -> Media:
        tiles = 1 + number % 2
        pixels, mask = torch.zeros(2, 3, edge, edge), torch.zeros(2, dtype=torch.long)
        pixels[:tiles] = torch.randn(tiles, 3, edge, edge, generator=generator)
        mask[:tiles] = 1
        tensors = {"pixel_values": pixels, "aspect_ratio_ids": torch.tensor(tiles), "aspect_ratio_mask": mask}
        return Media([IMAGE], tensors)

    return model, InputMaker(s.vocab, image, join=stack, extras=seen)


def seen(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Which image and tile each token sees: all images before it."""
    ordinals = (ids == IMAGE).cumsum(-1)
    most = int(ordinals.max())
    if not most:
        return {}
    images = ordinals[..., None] > torch.arange(most)
    tiles = torch.arange(2) < 1 + torch.arange(most)[:, None] % 2
    return {"cross_attention_mask": (images[..., None] & tiles).long()}
