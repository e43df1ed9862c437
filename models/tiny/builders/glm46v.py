"""GLM-4.6V: a packed ViT with 2-D rotary embeddings, a convolution that merges 2 x 2, GLM-4 with 3-D positions."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import FIRST_WORD, IMAGE, SPECIAL, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes

BOV, EOV = SPECIAL[2:4]


def glm46v(patch_size: int = 4, videos: bool = False, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Images 1 and 2 of a prompt are lower and narrower than the default one.

    With `videos` there are videos too, but not beside images: the model tells their placeholders apart from those of
    images no more than the processor does.
    """
    from transformers import Glm46VConfig, Glm46VForConditionalGeneration
    from transformers.models.glm4v.configuration_glm4v import Glm4vTextConfig, Glm4vVisionConfig

    s = Sizes(**sizes)
    pairs = s.hidden // s.heads // 4
    section = max(1, 3 * pairs // 8)
    text = Glm4vTextConfig(
        **decoder_sizes(s),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10000.0,
            "partial_rotary_factor": 0.5,
            "mrope_section": [pairs - 2 * section, section, section],
        },
    )
    vision = Glm4vVisionConfig(
        depth=s.vision_layers,
        hidden_size=s.vision_hidden,
        intermediate_size=2 * s.vision_hidden,
        num_heads=s.vision_heads,
        out_hidden_size=s.hidden,
        image_size=2 * s.side * patch_size,
        patch_size=patch_size,
        spatial_merge_size=2,
        temporal_patch_size=2,
    )
    config = Glm46VConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=IMAGE,
        image_start_token_id=BOI,
        image_end_token_id=EOI,
        video_start_token_id=BOV,
        video_end_token_id=EOV,
    )
    model = random_model(Glm46VForConditionalGeneration, config, s)

    def patches(generator: Generator, count: int) -> Tensor:
        return torch.randn(count, 3 * 2 * patch_size**2, generator=generator)

    def image(generator: Generator, number: int) -> Media:
        rows, columns = [(s.side, s.side), (s.side // 2, s.side), (s.side, s.side - 1)][number % 3]
        grid = torch.tensor([[1, 2 * rows, 2 * columns]])
        tensors = {"pixel_values": patches(generator, 4 * rows * columns), "image_grid_thw": grid}
        return Media([BOI, *[IMAGE] * (rows * columns), EOI], tensors)

    def video(generator: Generator, number: int, frames: int = 2) -> Media:
        edge = s.side // 2
        grid = torch.tensor([[frames, 2 * edge, 2 * edge]])
        tensors = {"pixel_values_videos": patches(generator, 4 * frames * edge**2), "video_grid_thw": grid}
        frame = [BOI, *[IMAGE] * edge**2, EOI, FIRST_WORD]
        return Media([BOV, *frame * frames, EOV], tensors)

    return model, InputMaker(s.vocab, image, video if videos else None, extras=token_types)


def token_types(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """2 for placeholders within a video, 1 for others, 0 for text."""
    inside = (ids == BOV).cumsum(-1) > (ids == EOV).cumsum(-1)
    return {"mm_token_type_ids": (ids == IMAGE).long() * (1 + inside.long())}
