"""Janus: a SigLIP-like encoder, an aligner, Llama; and a VQ-VAE with which it draws images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, vision_sizes
from prunekit.models.tiny.builders.llava import llama


def janus(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Images of side^2 patches, one visual token each; pictures are read, none is drawn."""
    from transformers import JanusConfig, JanusForConditionalGeneration, JanusVisionConfig, JanusVQVAEConfig

    s = Sizes(**sizes)
    tokens, edge = s.side**2, s.side * patch_size
    vision = vision_sizes(s, image_size=edge, patch_size=patch_size, projection_dim=s.hidden, num_image_tokens=tokens)
    del vision["intermediate_size"]
    config = JanusConfig(
        vision_config=JanusVisionConfig(**vision, mlp_ratio=2.0),
        vq_config=JanusVQVAEConfig(
            embed_dim=8,
            num_embeddings=32,
            latent_channels=32,
            base_channels=32,
            channel_multiplier=(1, 1),
            num_res_blocks=1,
            projection_dim=s.hidden,
            image_token_embed_dim=s.hidden,
        ),
        text_config=llama(s),
        image_token_id=IMAGE,
        tie_word_embeddings=False,
    )
    model = random_model(JanusForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, 3, edge, edge, generator=generator)
        return Media([BOI, *[IMAGE] * tokens, EOI], {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)
