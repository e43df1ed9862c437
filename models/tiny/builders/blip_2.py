"""BLIP-2 and InstructBLIP: a ViT with [CLS], a Q-Former, OPT or Llama."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import (
    BOS,
    EOS,
    FIRST_WORD,
    IMAGE,
    PAD,
    InputMaker,
    Media,
    Sizes,
    random_model,
)
from prunekit.models.tiny.builders.decoders import vision_sizes
from prunekit.models.tiny.builders.llava import llama


def blip_2(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """OPT as the decoder; side^2 queries look at grids of `side + 2`."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, OPTConfig
    from transformers.models.blip_2.configuration_blip_2 import Blip2QFormerConfig, Blip2VisionConfig

    s = Sizes(**sizes)
    text = OPTConfig(
        vocab_size=s.vocab,
        hidden_size=s.hidden,
        word_embed_proj_dim=s.hidden,
        ffn_dim=s.intermediate,
        num_hidden_layers=s.layers,
        num_attention_heads=s.heads,
        max_position_embeddings=8192,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
        tie_word_embeddings=False,
    )
    config = Blip2Config(
        vision_config=Blip2VisionConfig(**vision_sizes(s), image_size=(s.side + 2) * patch_size, patch_size=patch_size),
        qformer_config=Blip2QFormerConfig(**queries(s)),
        text_config=text,
        num_query_tokens=s.side**2,
        image_token_index=IMAGE,
    )
    return random_model(Blip2ForConditionalGeneration, config, s), InputMaker(s.vocab, images(s, patch_size))


def instructblip(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Llama as the decoder; the Q-Former reads an instruction beside the image."""
    from transformers import InstructBlipConfig, InstructBlipForConditionalGeneration
    from transformers.models.instructblip.configuration_instructblip import (
        InstructBlipQFormerConfig,
        InstructBlipVisionConfig,
    )

    s = Sizes(**sizes)
    config = InstructBlipConfig(
        vision_config=InstructBlipVisionConfig(
            **vision_sizes(s), image_size=(s.side + 2) * patch_size, patch_size=patch_size
        ),
        qformer_config=InstructBlipQFormerConfig(**queries(s)),
        text_config=llama(s),
        num_query_tokens=s.side**2,
        image_token_index=IMAGE,
    )
    model = random_model(InstructBlipForConditionalGeneration, config, s)
    return model, InputMaker(s.vocab, images(s, patch_size, instruction=5))


def queries(s: Sizes) -> dict[str, Any]:
    """Arguments of a Q-Former of two layers, of which the first looks at the image."""
    return vision_sizes(s, vocab_size=s.vocab, num_hidden_layers=2, max_position_embeddings=64)


def images(s: Sizes, patch_size: int, instruction: int = 0) -> Any:
    """A maker of images, each with an instruction of so many words for the Q-Former."""
    edge = (s.side + 2) * patch_size

    def image(generator: Generator, number: int) -> Media:
        tensors = {"pixel_values": torch.randn(1, 3, edge, edge, generator=generator)}
        if instruction:
            words = torch.randint(FIRST_WORD, s.vocab, (1, instruction), generator=generator)
            tensors |= {"qformer_input_ids": words, "qformer_attention_mask": torch.ones_like(words)}
        return Media([IMAGE] * s.side**2, tensors)

    return image
