"""The network, and the forward passes that training uses instead of the library's.

Training packs all questions about an image behind one image prefix.  Each question sees the prefix and
itself, and positions start again after the prefix, so every logit is the one that the library computes for
that question alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn, unflatten
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prunekit.models.tiny.training.words import ASSISTANT, BOS, EOS, IMAGE, PAD, TOKEN, USER, VOCABULARY_SIZE
from prunekit.scenes import GRID, IMAGE_SIZE, PATCH_SIZE

VISION_WIDTH = 128
VISUAL_TOKENS = GRID * GRID
LEAD = 2
"""Tokens in front of the image: `<s> USER:`."""


@dataclass(frozen=True)
class Packing:
    """Stands in for an attention mask: `prefix` tokens, then `blocks` questions of `length` tokens each."""

    prefix: int
    blocks: int
    length: int


def configuration() -> LlavaConfig:
    """1.7 million parameters: 5 vision layers of width 128, 8 decoder layers of width 96."""
    vision = CLIPVisionConfig(
        hidden_size=VISION_WIDTH,
        intermediate_size=256,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=VISION_WIDTH,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        initializer_range=0.06,
        rms_norm_eps=1e-5,
        pad_token_id=TOKEN[PAD],
        bos_token_id=TOKEN[BOS],
        eos_token_id=TOKEN[EOS],
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=TOKEN[IMAGE],
        image_seq_length=VISUAL_TOKENS,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        tie_word_embeddings=False,
    )


def build(seed: int) -> Any:
    """A new network with random weights; positions of the vision tower start as weak sines and cosines."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(configuration())
    at = torch.arange(GRID).float()
    quarter = VISION_WIDTH // 4
    frequency = 1.5 / 20 ** (torch.arange(quarter) / quarter)
    row, column = torch.meshgrid(at, at, indexing="ij")
    waves = [f(c.reshape(-1, 1) * frequency) for c in (row, column) for f in (torch.sin, torch.cos)]
    with torch.no_grad():
        model.model.vision_tower.embeddings.position_embedding.weight[1:] = torch.cat(waves, 1) * 0.12
    model.set_attn_implementation(ATTENTION)
    return model


def pixels(images: NDArray[np.uint8]) -> Tensor:
    """Unsigned bytes (n, height, width, 3) to floats (n, 3, height, width) in [-1, 1], like the processor."""
    return torch.from_numpy(np.ascontiguousarray(images)).permute(0, 3, 1, 2).float().div_(127.5).sub_(1.0)


def see(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Patch features that the projector gets (second to last layer), and the final [CLS] token."""
    tower = model.model.vision_tower
    hidden = tower.pre_layrnorm(tower.embeddings(images))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, attention_mask=None)
    last = tower.encoder.layers[-1](hidden, attention_mask=None)
    return hidden[:, 1:], tower.post_layernorm(last[:, 0])


def answer(
    model: Any,
    features: Tensor,
    questions: Tensor,
    answers: Tensor,
    keep: Tensor | None = None,
    layer: int = 0,
) -> Tensor:
    """Logits (images, questions, 2, vocabulary) of the answer and of the end token after it.

    `keep` (images, n) are the sorted visual tokens that survive; the rest leave before decoder layer `layer`.
    """
    decoder = model.model.language_model
    n, blocks, _ = questions.shape
    tail = torch.cat([questions, torch.full((n, blocks, 1), TOKEN[ASSISTANT]), answers[..., None]], -1)
    length = tail.shape[-1]
    lead = torch.tensor([TOKEN[BOS], TOKEN[USER]]).expand(n, LEAD)
    start = LEAD + VISUAL_TOKENS
    position = torch.cat([torch.arange(start), torch.arange(start, start + length).repeat(blocks)]).expand(n, -1)
    survivors = None
    if keep is not None:
        after = torch.arange(start, position.shape[1]).expand(n, -1)
        survivors = torch.cat([torch.arange(LEAD).expand(n, -1), keep + LEAD, after], 1)
    visual = model.model.multi_modal_projector(features)
    words = decoder.embed_tokens(torch.cat([lead, tail.flatten(1)], 1))
    hidden = torch.cat([words[:, :LEAD], visual.to(words.dtype), words[:, LEAD:]], 1)
    packing = Packing(start, blocks, length)
    rotary = decoder.rotary_emb(hidden, position_ids=position)
    for number, block in enumerate(decoder.layers):
        if survivors is not None and number == layer:
            hidden = hidden.gather(1, survivors[..., None].expand(-1, -1, hidden.shape[-1]))
            position = position.gather(1, survivors)
            packing = Packing(survivors.shape[1] - blocks * length, blocks, length)
            rotary = decoder.rotary_emb(hidden, position_ids=position)
        hidden = block(hidden, attention_mask=packing, position_embeddings=rotary, position_ids=position)
    tails = unflatten(hidden[:, packing.prefix :], 1, (blocks, length))[:, :, -2:]
    return model.lm_head(decoder.norm(tails)).float()  # type: ignore[no-any-return]


def _future(size: int) -> Tensor:
    return torch.ones(size, size, dtype=torch.bool).triu(1)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **unused: Any
) -> tuple[Tensor, None]:
    """Plain attention for the vision tower; with a `Packing`, the exact attention of packed questions."""
    if not isinstance(mask, Packing):
        mixed = (query * scaling @ key.transpose(-1, -2)).softmax(-1).to(value.dtype) @ value
        return mixed.transpose(1, 2).contiguous(), None
    prefix, shape = mask.prefix, (mask.blocks, mask.length)
    query = query * scaling
    first, later = query[:, :, :prefix], query[:, :, prefix:]
    key_p, value_p = key[:, :, :prefix], value[:, :, :prefix]
    key_q, value_q = (unflatten(t[:, :, prefix:], 2, shape) for t in (key, value))
    scores = (first @ key_p.transpose(-1, -2)).masked_fill(_future(prefix), -1e4)
    mixed_p = scores.softmax(-1).to(value.dtype) @ value_p
    own = unflatten(later, 2, shape) @ key_q.transpose(-1, -2)
    own = own.masked_fill(_future(mask.length), -1e4).flatten(2, 3)
    weights = torch.cat([later @ key_p.transpose(-1, -2), own], -1).softmax(-1).to(value.dtype)
    mixed_q = weights[..., :prefix] @ value_p
    mixed_q = mixed_q + (unflatten(weights[..., prefix:], 2, shape) @ value_q).flatten(2, 3)
    return torch.cat([mixed_p, mixed_q], 2).transpose(1, 2).contiguous(), None


ATTENTION = "prunekit_tiny_training"
ALL_ATTENTION_FUNCTIONS.register(ATTENTION, _attention)
