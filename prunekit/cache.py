"""A KV-cache layer that knows which tokens it holds.

While the model runs, it looks like a cache of everything that was sent: it counts every column, as transformers' own
sliding-window layers do, so that the model makes positions and masks for the whole conversation by its own code. The
session cuts those masks to the columns that a layer really holds; the layer carries them along through everything that
happens to a cache: growth, beam reordering, repetition, cropping, copying.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer
from transformers.modeling_outputs import BaseModelOutputWithPast

from prunekit.errors import UnsupportedCacheError, UnsupportedInputError

__all__ = ["CACHE", "NAMES", "PrunedLayer", "cache_layer", "given_cache", "new_columns", "set_running"]

NAMES = ("cache", "past_key_values")
"""What the argument with the KV cache is called: since transformers 5.24, and before."""

CACHE = NAMES[0] if NAMES[0] in BaseModelOutputWithPast.__dataclass_fields__ else NAMES[1]
"""What it is called in the transformers that is installed, and what outputs call it."""


class PrunedLayer(DynamicLayer):
    """A `DynamicLayer` whose keys stand for a part of the columns that were sent.

    A sliding-window layer becomes one too: its window is in the mask, and counts the columns that were sent, and what
    is left of them stays.

    Attributes:
        columns: for each key the column that it was sent as, [batch, n]; -1 is padding. Keys after the first n are the
            columns that follow, one by one (generated tokens).
        seen: number of columns so far.
        running: whether the model is at work, and is to be told of `seen` columns instead of the keys that are held.
        padded: whether any of `columns` is padding (a host flag, so that decoding need not look).
        shift: how far compacted positions have moved, [batch, 1], or None.
        pending: columns of the call that the next `update` brings, [batch, new]; None: plain new tokens.
    """

    _layer_type = None

    def __init__(self, layer: DynamicLayer | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        if layer is not None:
            self.__dict__.update(layer.__dict__)
            self.is_sliding = layer.is_sliding
        self.columns: Tensor | None = None
        self.padded = False
        self.shift: Tensor | None = None
        self.pending: Tensor | None = None
        self.running = False
        held = super().get_seq_length()
        self.seen = held if layer is None else layer.get_seq_length()  # more where a window has forgotten the first
        self.tail = held  # keys after `columns`: columns seen - tail ... seen - 1
        self._length = 0

    @property
    def always(self) -> int:
        """How many columns, the first ones, no window forgets."""
        return 0

    def get_seq_length(self) -> int:
        return self.seen if self.running else super().get_seq_length()

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.seen + query_length, 0

    def cut(self, new: Tensor | int, device: torch.device) -> Tensor:
        """Columns of all keys after the coming update, [batch, keys] (batch 1 where all rows are alike)."""
        if not self.seen and not isinstance(new, int):
            return new  # layers pruned alike share one tensor, so that a mask is cut once for all of them
        plain = new if isinstance(new, int) else 0
        tail = torch.arange(self.seen - self.tail, self.seen + plain, device=device)[None]
        parts = [tail] if self.columns is None else [self.columns.to(device), tail]
        if not isinstance(new, int):
            parts.append(torch.where(new >= 0, new + self.seen, -1).to(device))
        parts = [part for part in parts if part.shape[1]] or parts
        rows = max(part.shape[0] for part in parts)
        return parts[0] if len(parts) == 1 else torch.cat([part.expand(rows, -1) for part in parts], dim=1)

    def expect(self, new: Tensor, length: int, padded: bool, moved: Tensor | None) -> None:
        """Announce what the next `update` brings: of `length` columns those that are cached, [batch, new].

        Args:
            padded: whether `new` holds padding.
            moved: by how much the positions of all later tokens move, [batch, 1], or None.
        """
        self.pending, self._length = new, length
        self.padded = self.padded or padded
        if moved is not None:
            self.shift = moved if self.shift is None else self.shift + moved

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.running:
            raise UnsupportedCacheError(
                "This KV cache was pruned inside a prune(...) session, and now a model outside of one goes on with"
                " it. Continue inside a session with the same stages, or start with a new cache."
            )
        if self.pending is None:  # nothing was announced: plain new tokens
            new = int(key_states.shape[-2])
            self.tail += new
            self.seen += new
        else:
            self.columns, self.tail = self.cut(self.pending, key_states.device), 0
            self.seen += self._length
            self.pending = None
        return super().update(key_states, value_states, *args, **kwargs)

    def reorder_cache(self, beam_idx: Tensor) -> None:  # beam search brings int32
        super().reorder_cache(cast(torch.LongTensor, beam_idx))
        self._rows(lambda t: t.index_select(0, beam_idx.to(t.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._rows(lambda t: t.repeat_interleave(repeats, dim=0))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._rows(lambda t: t[indices, ...])

    def crop(self, tokens_to_remove: int) -> None:
        count = abs(tokens_to_remove)
        if count > self.tail:
            raise UnsupportedCacheError(
                f"Cannot take {count} tokens off this KV cache: only the last {self.tail} came after the pruned prompt"
                " (assisted generation, which drafts tokens along with the prompt, is not supported)."
            )
        super().crop(tokens_to_remove)
        self.tail -= count
        self.seen -= count

    def reset(self) -> None:
        super().reset()
        self.columns = self.shift = self.pending = None
        self.seen = self.tail = 0
        self.padded = False

    def _rows(self, change: Any) -> None:
        if self.columns is not None and self.columns.shape[0] > 1:
            self.columns = change(self.columns)
        if self.shift is not None and self.shift.shape[0] > 1:
            self.shift = change(self.shift)


def given_cache(kwargs: Mapping[str, Any]) -> Any:
    """The KV cache among the arguments of a call, under either name; None where there is none."""
    return next((kwargs[name] for name in NAMES if kwargs.get(name) is not None), None)


def cache_layer(cache: Cache | None, index: int) -> Any:
    """Layer `index` of a cache, or None where there is none yet."""
    return cache.layers[index] if cache is not None and index < len(cache.layers) else None


def set_running(cache: Cache | None, running: bool) -> bool:
    """Tell all pruned layers of a cache whether the model is at work; returns whether any of them holds padding.

    Raises:
        UnsupportedCacheError: the layers have not seen the same columns.
    """
    pruned = [layer for layer in cache.layers if isinstance(layer, PrunedLayer)] if cache is not None else []
    for layer in pruned:
        layer.running = running
        if running and layer.seen != pruned[0].seen:
            raise UnsupportedCacheError(
                f"A layer of this KV cache has seen {layer.seen} tokens and another one {pruned[0].seen}: it was not"
                " filled by the same stages from the start."
            )
    return any(layer.padded for layer in pruned)


def new_columns(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Cut off what was seen: `generate` on a pruned cache counts its keys, and sends too many tokens again."""
    cache, ids = given_cache(kwargs), kwargs.get("input_ids")
    counting = (layer for layer in cache.layers if hasattr(layer, "get_seq_length")) if cache is not None else ()
    first = next(iter(counting), None)  # the one that transformers itself asks
    if ids is None or ids.shape[1] == 1 or not isinstance(first, PrunedLayer) or not first.seen:
        return kwargs
    mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
    if mask is None and positions is None:
        return kwargs
    total = int(mask.shape[-1] if mask is not None else positions.max() + 1)
    new = total - first.seen
    if new < 1:
        raise UnsupportedInputError(f"The KV cache has seen {first.seen} tokens, but the inputs describe only {total}.")
    if new < ids.shape[1]:
        kwargs = {**kwargs, "input_ids": ids[:, -new:]}
        for name in ("position_ids", "token_type_ids", "mm_token_type_ids"):
            if isinstance(kwargs.get(name), Tensor):
                kwargs[name] = kwargs[name][..., -new:]
    return kwargs
