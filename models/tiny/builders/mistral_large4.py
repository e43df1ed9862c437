"""Mistral Large 4: Pixtral's encoder, 2 x 2 merging, a projector, latent attention to the tokens an indexer picks."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes
from prunekit.models.tiny.builders.kimi_k25 import latent
from prunekit.models.tiny.builders.llava_next import padded
from prunekit.models.tiny.builders.mistral3 import images


def mistral_large4(
    patch_size: int = 4, merge: int = 2, top: int | None = None, shared: bool = True, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Each layer looks at the `top` tokens (half an image) that its indexer picks, every second one without RoPE.

    Where keys and values are `shared`, the layers without RoPE in the second half read those of the one before them.
    """
    from transformers import MistralLarge4Config, MistralLarge4ForConditionalGeneration, PixtralVisionConfig
    from transformers.models.mistral_large4.configuration_mistral_large4 import MistralLarge4TextConfig

    s = Sizes(**sizes)
    unit = merge * patch_size
    unrotated = range(1, s.layers, 2)
    sources = list(range(s.layers))
    if shared:
        source = (len(unrotated) - 1) // 2
        sources = [min(layer, unrotated[source]) if layer in unrotated else layer for layer in sources]
    text = MistralLarge4TextConfig(
        **decoder_sizes(s, **latent(s), max_position_embeddings=2**20),
        index_topk=s.side**2 // 2 if top is None else top,
        index_head_dim=s.hidden // s.heads,
        index_n_heads=16,
        no_rope_layers=[int(layer not in unrotated) for layer in range(s.layers)],
        kv_source_layers=sources,
    )
    config = MistralLarge4Config(
        vision_config=PixtralVisionConfig(**vision_sizes(s), image_size=s.side * unit, patch_size=patch_size),
        text_config=text,
        image_token_index=IMAGE,
        spatial_merge_size=merge,
    )
    model = random_model(MistralLarge4ForConditionalGeneration, config, s)
    with torch.no_grad():  # learned, and without effect as they are made
        for name, weight in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith(("softmax_scaling.scale", "rotary_emb.alpha")):
                weight.normal_(0, s.std)
    return model, InputMaker(s.vocab, images(s, unit), join=padded)
