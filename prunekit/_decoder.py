"""The decoder layers of a pruned model: cutting what they are handed to the tokens that are left at each layer.

The model makes masks, positions and rotary tables for every column it was sent, by its own code. A layer that holds
fewer tokens is handed them cut to its own, and its cache is told which columns come in. All layers that hold the same
tokens share one cut.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from prunekit._cache_kinds import pruned_layer
from prunekit._call import Call
from prunekit.adapter import ModelAdapter
from prunekit.cache import NAMES, PrunedLayer, cache_layer, given_cache
from prunekit.errors import UnsupportedCacheError, UnsupportedInputError
from prunekit.masks import cut_mask, padding_mask
from prunekit.sequence import gather

__all__ = ["Decoder"]

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Decoder:
    """What happens at a decoder layer besides its stage."""

    def __init__(self, adapter: ModelAdapter, compact: bool) -> None:
        self.adapter, self.compact = adapter, compact
        self.config: Any = adapter.text_model.config
        self.keys_of = [adapter.keys_of(layer) for layer in range(adapter.depth)]

    def cut(self, call: Call, layer: int, hidden: Tensor, args: tuple[Any, ...], kwargs: Any) -> Arguments | None:
        """The arguments after `hidden` that a layer is given instead; None: nothing differs."""
        if call.left is None and not self.compact and not call.holes and kwargs.get("attention_mask") is None:
            return None  # decoding mostly ends here: keep it short
        own = self._cache(call, layer, given_cache(kwargs))
        if call.left is None and (own is None or (own.columns is None and own.shift is None)):
            return None  # the layer holds everything
        handed = {name: value for name, value in kwargs.items() if name != "hidden_states"}
        columns, shift = (None, None) if own is None else (own.columns, own.shift)
        given = (*args, *handed.values(), columns, shift)
        kind = self.keys_of[layer] is None
        found: Arguments = call.once((kind, *handed), given, lambda: self._cut(call, own, layer, hidden, args, handed))
        if own is not None and call.left is not None and self.keys_of[layer] == layer:
            moved = call.dropped(hidden.device) if self.compact else None
            own.expect(call.left, call.length, call.padded, moved)
        return found

    def _cut(
        self,
        call: Call,
        own: PrunedLayer | None,
        layer: int,
        hidden: Tensor,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Arguments:
        """Cut what a layer is handed to its own columns; once for all layers that are handed the same."""
        columns, shift = (None, None) if own is None else (own.columns, own.shift)
        mask, kind = kwargs.get("attention_mask"), ("mask", self.keys_of[layer] is None)
        changed = {
            "attention_mask": call.once(kind, (mask, columns), lambda: self._mask(call, own, layer, mask, hidden))
        }
        if call.left is not None:
            args = tuple(self._columns(call, "", value) for value in args)
            others = {name: value for name, value in kwargs.items() if name not in ("attention_mask", *NAMES)}
            changed |= {name: self._columns(call, name, value) for name, value in others.items()}
        if self.compact:
            positions = call.once("compact", (call.positions, shift), lambda: self._compacted(call, own))
            tables = call.once("rotary", (positions,), lambda: self.adapter.rotary(hidden, positions))
            changed["position_ids"] = positions
            if kwargs.get("position_embeddings", tables) is not None:  # None: a layer without positions
                changed["position_embeddings"] = tables
        return args, kwargs | changed

    # --- the cache ---------------------------------------------------------------------------------------------------

    def _cache(self, call: Call, layer: int, cache: Any) -> PrunedLayer | None:
        """The cache with the keys that the layer looks at if it is a pruned one, or has to become one now."""
        source = self.keys_of[layer]
        if source is None:
            return None
        own = cache_layer(cache, source)
        if cache is not None and call.left is not None and source == layer:
            own, call.cache = pruned_layer(cache, layer), cache  # the model may have made the cache only now
        if not isinstance(own, PrunedLayer):
            return None
        if own.seen != call.base and source == layer:
            raise UnsupportedCacheError(
                f"The KV cache of layer {layer} has seen {own.seen} tokens and that of layer 0 {call.base}: it was not"
                " filled by the same stages from the start."
            )
        if own.is_sliding and own.columns is not None and "flash" in self.config._attn_implementation:
            raise UnsupportedInputError(
                f"Decoder layer {layer} has a sliding window, which FlashAttention would count in the tokens that are"
                " left instead of those that were sent; load the model with attn_implementation='sdpa'."
            )
        return own

    # --- masks -------------------------------------------------------------------------------------------------------

    def _mask(self, call: Call, own: PrunedLayer | None, layer: int, mask: Any, hidden: Tensor) -> Any:
        if mask is None and not call.padded and not (own is not None and own.padded):
            return None
        if self.keys_of[layer] is None:  # it is told which columns are no padding, [batch, length]
            assert call.left is not None  # without keys there is nothing else to cut
            if call.base and call.padded:
                raise UnsupportedInputError(
                    f"Rows keep different numbers of tokens of a prompt behind a filled KV cache, and decoder layer"
                    f" {layer} is recurrent: padding in the middle of a sequence would change its state. Ask for as"
                    " many tokens in every row, or run the rows one by one."
                )
            return call.left >= 0 if mask is None else cut_mask(mask, call.left, None)
        if own is not None:
            coming = call.length if call.left is None else call.left
            keys = own.cut(0 if own.seen > call.base else coming, hidden.device)  # shared keys have come already
        else:
            assert call.left is not None  # without a cache, only a pruned call gets here
            keys = call.left
        if mask is not None:
            if isinstance(mask, Tensor) and mask.shape[-1] < call.base + call.length:
                # A window's mask has the columns that are in the caches of the layers that were not pruned.
                forgotten, always = call.base + call.length - mask.shape[-1], 0 if own is None else own.always
                keys = keys.where(keys < always, (keys - forgotten).where(keys - forgotten >= always, -1))
            sliced = call.left is not None and hidden.shape[1] != call.left.shape[1]  # by the model, to the last ones
            return cut_mask(mask, keys, None if sliced else call.left)
        return padding_mask(keys, hidden.shape[1], self.config._attn_implementation, hidden.dtype)

    # --- everything else that has a column for each token ------------------------------------------------------------

    def _columns(self, call: Call, name: str, value: Any) -> Any:
        """A layer's argument for the columns that are left: tensors, and tuples and mappings of tensors."""
        if isinstance(value, Tensor):
            axis = _length_axis(value, call, name)
            if axis is None:
                return value
            index = call.left
            assert index is not None
            return call.once(name, (value,), lambda: gather(value, index, axis, max(axis - 1, 0)))
        if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
            return type(value)(self._columns(call, name, item) for item in value)
        if type(value) is dict:
            return {key: self._columns(call, name, item) for key, item in value.items()}
        return value

    def _compacted(self, call: Call, own: PrunedLayer | None) -> Tensor:
        """Position ids without gaps of the columns that are left, [batch, left]."""
        positions = call.positions
        assert positions is not None  # made for every call of a session that compacts
        if call.left is not None:
            positions = gather(positions, call.left) - call.gaps()
        return positions if own is None or own.shift is None else positions - own.shift


def _length_axis(value: Tensor, call: Call, name: str) -> int | None:
    """The axis of a layer's argument that has an entry for each column of the call; None where there is none.

    The axis before it is that of the batch: [batch, length], [1, length, dim], [3, batch, length].
    """
    axes = range(1, value.ndim)
    for axis in reversed(axes) if name == "position_ids" else axes:
        if value.shape[axis] == call.length and value.shape[axis - 1] in (1, call.batch):
            return axis
    return None
