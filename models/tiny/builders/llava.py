"""LLaVA-1.5: CLIP, a two-layer projector, Llama."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import BOS, EOS, IMAGE, PAD, InputMaker, Media, Sizes, random_model


def llava(
    image_size: int = 24, patch_size: int = 4, vision_layers: int = 4, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Images of `image_size`, cut into patches of `patch_size`: one visual token each."""
    from transformers import CLIPVisionConfig, LlavaConfig, LlavaForConditionalGeneration

    s = Sizes(**sizes, vision_layers=vision_layers)
    vision = CLIPVisionConfig(
        hidden_size=s.vision_hidden,
        intermediate_size=2 * s.vision_hidden,
        num_hidden_layers=s.vision_layers,
        num_attention_heads=s.vision_heads,
        image_size=image_size,
        patch_size=patch_size,
        projection_dim=s.vision_hidden,
    )
    patches = (image_size // patch_size) ** 2
    config = LlavaConfig(
        vision_config=vision,
        text_config=llama(s),
        image_token_index=IMAGE,
        image_seq_length=patches,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    model = random_model(LlavaForConditionalGeneration, config, s)

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, 3, image_size, image_size, generator=generator)
        return Media([IMAGE] * patches, {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)


def llama(s: Sizes) -> Any:
    """A Llama of these sizes."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=s.vocab,
        hidden_size=s.hidden,
        intermediate_size=s.intermediate,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        num_key_value_heads=s.key_heads,
        max_position_embeddings=8192,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
