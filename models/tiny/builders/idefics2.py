"""Idefics2: SigLIP with padded images, a perceiver resampler, Mistral with a sliding window."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, decoder_sizes, vision_sizes


def idefics2(
    patch_size: int = 4, window: int | None = None, depth: int = 2, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """SigLIP over grids of `side + 2`, resampled to side^2 tokens, Mistral with windows of `window` (two images).

    Images 1 and 2 of a prompt are lower and narrower than the default one; all are padded to the same size.
    """
    from transformers import Idefics2Config, Idefics2ForConditionalGeneration, MistralConfig
    from transformers.models.idefics2.configuration_idefics2 import Idefics2PerceiverConfig, Idefics2VisionConfig

    s = Sizes(**sizes)
    tokens, grid = s.side**2, s.side + 2
    edge = grid * patch_size
    config = Idefics2Config(
        vision_config=Idefics2VisionConfig(**vision_sizes(s), image_size=edge, patch_size=patch_size),
        perceiver_config=Idefics2PerceiverConfig(
            hidden_size=s.hidden,
            resampler_n_latents=tokens,
            resampler_depth=depth,
            resampler_n_heads=s.heads,
            resampler_head_dim=s.hidden // s.heads,
            num_key_value_heads=s.key_heads,
        ),
        text_config=MistralConfig(
            **decoder_sizes(s, head_dim=s.hidden // s.heads, sliding_window=window or 2 * tokens)
        ),
        image_token_id=IMAGE,
    )
    model = random_model(Idefics2ForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        height, width = [(edge, edge), (edge - patch_size, edge), (edge, edge - 2 * patch_size)][number % 3]
        pixels, mask = torch.zeros(3, edge, edge), torch.zeros(edge, edge, dtype=torch.long)
        pixels[:, :height, :width] = torch.randn(3, height, width, generator=generator)
        mask[:height, :width] = 1
        return Media([BOI, *[IMAGE] * tokens, BOI], {"pixel_values": pixels, "pixel_attention_mask": mask})

    return model, InputMaker(s.vocab, image, join=stack)


def stack(media: list[list[Media]]) -> dict[str, Tensor]:
    """Tensors of equal shapes, [batch, images, ...]; rows with fewer images are filled up with zeros."""
    most = max(map(len, media))
    shapes = {name: tensor for row in media for item in row for name, tensor in item.tensors.items()}
    return {
        name: torch.stack(
            [
                torch.stack([item.tensors[name] for item in row] + [torch.zeros_like(like)] * (most - len(row)))
                for row in media
            ]
        )
        for name, like in shapes.items()
    }
