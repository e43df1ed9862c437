"""Reading attention rows while a layer runs, without eager attention and without running anything twice.

transformers sends every attention call through a mapping from names to functions. While a tapped module runs, and
only then, the entry for its implementation is a `_Switch`: it shows the call's queries and keys to the tap and passes
everything on to the function that was there before. The tap computes the softmax for the rows that are needed, in
O(rows x keys).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prunekit.errors import NeedsError
from prunekit.sequence import gather

__all__ = ["Observer", "attention_rows", "look_ahead", "tap"]

Observer = Callable[..., None]
"""Called as `observer(module, query, key, mask, value=..., scaling=..., **kwargs)` before the layer's own attention."""

_CHUNK = 128  # rows computed at a time: memory grows with rows x keys of a chunk, not with the whole map


def tap(module: nn.Module, observer: Observer, wanted: Callable[[], bool] = lambda: True) -> list[Any]:
    """Show attention calls of `module` to `observer`; returns handles whose `remove()` ends it.

    Args:
        module: the attention module.
        observer: is shown queries and keys.
        wanted: asked before each call of the module whether it is to be shown; decoding mostly is not.
    """
    opened: list[bool] = []

    def enter(module: nn.Module, args: Any) -> None:
        if wanted():
            opened.append(True)
            _Switch.open(module, observer)

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        if opened:
            opened.pop()
            _Switch.close(module)

    handles = [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]
    return [*handles, _Closing(module)]


class _Seen(Exception):
    """Ends a look ahead once queries and keys have been shown."""


def look_ahead(
    layer: nn.Module, attention: nn.Module, hidden: Tensor, args: tuple[Any, ...], kwargs: Any, observer: Observer
) -> None:
    """Show a layer's queries and keys for given states, and stop before its attention is computed.

    The layer's own code makes them (norm, projections, rotary embedding), without a cache, so that nothing is left
    behind and nothing is copied from any model family.

    Args:
        layer: a decoder layer.
        attention: its attention module.
        hidden: states [batch, length, dim]; `args` and `kwargs` are what the layer is given besides.
        observer: is shown queries and keys.
    """
    shown = False
    forward, own = attention.forward, "forward" in vars(attention)

    def stop(*args: Any, **kwargs: Any) -> None:
        nonlocal shown
        shown = True
        observer(*args, **kwargs)
        raise _Seen

    def begun(*args: Any, **kwargs: Any) -> Any:
        try:
            return forward(*args, **kwargs)
        except _Seen:  # the module ends in order, so that hooks of others (fvcore's scopes) are closed
            return None

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        raise _Seen

    handles = tap(attention, stop)
    handles.append(attention.register_forward_hook(leave))
    attention.forward = begun
    try:
        layer.forward(hidden, *args, **kwargs)
    except _Seen:
        pass
    finally:
        if own:
            attention.forward = forward
        else:
            del attention.forward
        for handle in handles:
            handle.remove()
    if not shown:
        raise NeedsError(f"The attention of {type(layer).__name__} cannot be read: it calls no attention function.")


class _Closing:
    """Ends what an interrupted call left open: torch runs no hooks after a KeyboardInterrupt."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def remove(self) -> None:
        _Switch.close(self.module)


class _Switch:
    """Stands in for one attention function while tapped modules run; serves several threads."""

    lock: ClassVar[threading.RLock] = threading.RLock()

    def __init__(self, before: Callable[..., Any] | None) -> None:
        self.before = before  # an entry of the instance mapping that ours hides, put back at the end
        self.observers: dict[nn.Module, Observer] = {}

    @classmethod
    def open(cls, module: nn.Module, observer: Observer) -> None:
        mapping, name = _mapping(module), _implementation(module)
        with cls.lock:
            entry = mapping._local_mapping.get(name)
            if not isinstance(entry, cls):
                entry = cls(entry)
                mapping._local_mapping[name] = entry
            entry.observers[module] = observer

    @classmethod
    def close(cls, module: nn.Module) -> None:
        mapping, name = _mapping(module), _implementation(module)
        with cls.lock:
            entry = mapping._local_mapping.get(name)
            if not isinstance(entry, cls):
                return
            entry.observers.pop(module, None)
            if not entry.observers:
                if entry.before is None:
                    del mapping._local_mapping[name]
                else:
                    mapping._local_mapping[name] = entry.before

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        observer = self.observers.get(module)
        if observer is not None:
            observer(module, query, key, attention_mask, value=value, **kwargs)
        function = self.before or _mapping(module)._global_mapping.get(_implementation(module)) or _own_eager(module)
        return function(module, query, key, value, attention_mask, **kwargs)


def _mapping(module: nn.Module) -> Any:
    return getattr(sys.modules[type(module).__module__], "ALL_ATTENTION_FUNCTIONS", ALL_ATTENTION_FUNCTIONS)


def _implementation(module: Any) -> str:
    return module.config._attn_implementation  # type: ignore[no-any-return]


def _own_eager(module: nn.Module) -> Callable[..., Any]:
    """Eager attention is no entry of the mapping: each modelling file has its own function of this name."""
    function = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
    if function is None:
        raise NeedsError(
            f"The attention of {type(module).__name__} cannot be read under attn_implementation='eager'; load with"
            " 'sdpa'."
        )
    return function  # type: ignore[no-any-return]


def attention_rows(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Any,
    rows: Tensor,
    real: Tensor,
    columns: Tensor,
    *,
    scaling: float | None = None,
    softcap: float | None = None,
    reduce: str | None = "mean",
    joined: bool = False,
    segments: Tensor | None = None,
) -> Tensor:
    """Attention of chosen query rows to chosen key columns, softmax over all keys, in float32.

    Args:
        query: [batch, heads, queries, head_dim].
        key: [batch, key_heads, keys, head_dim], heads shared by groups of queries.
        mask: what the layer's attention was given.
        rows: query rows, [batch, rows]; `real` marks those that exist.
        columns: key columns, [batch, columns].
        reduce: `mean` averages over heads and real rows; `max` takes the largest of the heads and averages over rows.
        joined: take all heads as one wide one.
        segments: numbers of the parts of the sequence that see only themselves, [keys] (images, under FlashAttention).

    Returns:
        [batch, columns] if reduced, else [batch, heads, rows, columns] with rows that are not real set to 0.
    """
    if joined:
        wide = query.shape[1] * query.shape[-1]
        query = rearrange(query, "b h q d -> b 1 q (h d)")
        key = rearrange(key.repeat_interleave(wide // key[0, :, 0].numel(), 1), "b h k d -> b 1 k (h d)")
        scaling = None
    keys = key.shape[2]
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    offset = keys - query.shape[2]
    parts = []
    for index, exists in zip(rows.split(_CHUNK, 1), real.split(_CHUNK, 1), strict=True):
        picked = gather(query, index, 2) * scaling  # [batch, heads, rows, head_dim]
        grouped = rearrange(picked, "b (shared group) r d -> b shared (group r) d", shared=key.shape[1])
        logits = grouped @ key.transpose(-1, -2)
        logits = rearrange(logits, "b shared (group r) k -> b (shared group) r k", r=index.shape[1])
        if softcap is not None:
            logits = torch.tanh(logits / softcap) * softcap
        logits = _masked(module, logits.float(), mask, index, offset)
        if segments is not None:
            apart = segments[index][:, None, :, None] != segments
            logits = logits.masked_fill(apart, torch.finfo(logits.dtype).min)
        chunk = logits.softmax(-1)
        if reduce is None:
            parts.append(gather(chunk, columns, 3) * exists[:, None, :, None])
        else:  # first over heads: what is left is small
            chunk = chunk.mean(1) if reduce == "mean" else chunk.amax(1)
            parts.append((chunk * exists[..., None]).sum(1))
    if reduce is None:
        return torch.cat(parts, 2)
    total = parts[0] if len(parts) == 1 else torch.stack(parts).sum(0)
    return gather(total, columns) / real.sum(1, keepdim=True)


def _masked(module: nn.Module, logits: Tensor, mask: Any, rows: Tensor, offset: int) -> Tensor:
    """Apply the layer's mask (or bare causality) to the logits of some rows; may write on them."""
    if isinstance(mask, BlockMask):
        mask = _rows_of_blocks(mask, rows, logits.shape[-1])
        rows = torch.arange(rows.shape[1], device=logits.device).expand(len(rows), -1)
    lowest = torch.finfo(logits.dtype).min  # finite: rows of padding see nothing at all, and must not become NaN
    if mask is not None and mask.ndim == 4:
        mask = gather(mask[..., : logits.shape[-1]], rows, 2)
        return logits.masked_fill_(~mask, lowest) if mask.dtype == torch.bool else logits + mask.float()
    if getattr(module, "is_causal", False):
        order = torch.arange(logits.shape[-1], device=logits.device)
        logits = logits.masked_fill_((order > rows[..., None] + offset)[:, None], lowest)
    return logits if mask is None else logits.masked_fill_(~mask[:, None, None].bool(), lowest)


def _rows_of_blocks(mask: BlockMask, rows: Tensor, keys: int) -> Tensor:
    """Rows of a block mask written out, [batch, 1, rows, keys]."""
    batch = torch.arange(len(rows), device=rows.device)[:, None, None]
    allowed = mask.mask_mod(batch, batch * 0, rows[..., None], torch.arange(keys, device=rows.device)[None, None])
    return allowed.expand(len(rows), rows.shape[1], keys)[:, None]
