"""Cutting the attention masks that a model made for its full sequence down to the tokens that are left."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from prunekit.errors import UnsupportedInputError
from prunekit.sequence import gather

__all__ = ["cut_mask", "padding_mask"]


def cut_mask(mask: object, keys: Tensor, queries: Tensor | None) -> Any:
    """Take key columns `keys` [batch, k] and, where given, query rows `queries` [batch, q] of a mask; -1 is hidden.

    Args:
        mask: [batch, heads, query, key] boolean or additive (eager, SDPA), [batch, key] (FlashAttention, `generate`) or
            a block mask (FlexAttention).

    Raises:
        UnsupportedInputError: the mask is of another kind.
    """
    if isinstance(mask, BlockMask):
        return _cut_blocks(mask, keys, queries)
    if not isinstance(mask, Tensor) or mask.ndim not in (2, 4):
        raise UnsupportedInputError(
            f"Attention masks of type {type(mask).__name__} cannot be cut to the kept tokens; load the model with"
            " attn_implementation='sdpa', 'eager', 'flash_attention_2' or 'flex_attention'."
        )
    keys = keys.to(mask.device)
    if mask.ndim == 2:
        return gather(mask, keys, 1) * (keys >= 0).to(mask.dtype)
    if queries is not None:
        mask = gather(mask, queries, 2)
    mask = gather(mask, keys, 3)
    hidden = (keys < 0)[:, None, None, :]
    return mask.masked_fill(hidden, 0 if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)


def _cut_blocks(mask: BlockMask, keys: Tensor, queries: Tensor | None) -> BlockMask:
    """A block mask that asks the old one about the columns that the new ones stand for."""
    keys = keys.to(mask.kv_num_blocks.device)
    rows = torch.arange(mask.seq_lengths[0], device=keys.device)[None] if queries is None else queries.to(keys.device)
    batch = max(len(keys), len(rows))
    keys, rows, allowed = keys.expand(batch, -1), rows.expand(batch, -1), mask.mask_mod

    # a lambda: torch counts its parameters
    return create_block_mask(
        lambda b, h, q, kv: (
            (keys[b, kv] >= 0) & allowed(b, h, rows[b, q].clamp(min=0), keys[b, kv].clamp(min=0))
        ),
        batch, None, rows.shape[1], keys.shape[1], device=str(keys.device),
    )  # fmt: skip


def padding_mask(keys: Tensor, queries: int, implementation: str, dtype: torch.dtype) -> Any:
    """A mask for layers that were handed none (nothing but causality) but whose rows are now padded.

    Args:
        keys: columns of the keys, [batch, k]; -1 is padding.
        queries: number of query tokens, the last ones of the keys.
        implementation: the model's attention; FlashAttention takes [batch, k], the others [batch, 1, queries, k].
    """
    real = keys >= 0
    if "flash" in implementation:
        return real
    length = keys.shape[1]
    if implementation == "flex_attention":
        return create_block_mask(
            lambda b, h, q, kv: real[b, kv] & (kv <= q + length - queries),
            len(keys),
            None,
            queries,
            length,
            device=str(keys.device),
        )
    order = torch.arange(length, device=keys.device)
    causal = order[None, :] <= order[length - queries :, None]
    mask = real[:, None, None, :] & causal
    if implementation != "eager":
        return mask
    return torch.zeros((), dtype=dtype, device=keys.device).masked_fill(~mask, torch.finfo(dtype).min)
