"""Pi0: PaliGemma, and a Gemma that denoises actions on its KV cache. A subject of refusals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes
from prunekit.models.tiny.builders.idefics2 import stack
from prunekit.models.tiny.builders.paligemma import siglip


def pi0(chunk: int = 4, actions: int = 8, patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """`chunk` steps of `actions` numbers, by an expert of half the width; images are those of several cameras."""
    from transformers import GemmaConfig, PaliGemmaConfig, PI0Config, PI0ForConditionalGeneration

    s = Sizes(**sizes)
    edge = s.side * patch_size
    arguments = decoder_sizes(s, head_dim=s.hidden // s.heads)
    half = {"hidden_size": s.hidden // 2, "intermediate_size": s.intermediate // 2}
    config = PI0Config(
        vlm_config=PaliGemmaConfig(
            vision_config=siglip(s, edge, patch_size),
            text_config=GemmaConfig(**arguments),
            image_token_index=IMAGE,
            vocab_size=s.vocab,
            hidden_size=s.hidden,
            projection_dim=s.hidden,
        ),
        dit_config=GemmaConfig(**{**arguments, **half}),
        chunk_size=chunk,
        max_state_dim=actions,
        max_action_dim=actions,
    )
    model = random_model(PI0ForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.randn(3, edge, edge, generator=generator)
        tensors = {"pixel_values": pixels, "pixel_attention_mask": torch.ones((), dtype=torch.bool)}
        return Media([IMAGE] * s.side**2, tensors)

    def robot(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Its state, and the actions to be denoised at which time."""
        rows = len(ids)
        return {
            "state": torch.ones(rows, actions),
            "noise": torch.ones(rows, chunk, actions),
            "timestep": torch.full((rows,), 0.5),
        }

    return model, InputMaker(s.vocab, image, join=stack, extras=robot)
