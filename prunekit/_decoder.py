"""The decoder layers of a pruned model: cutting masks and positions to the tokens that are left at each layer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from prunekit._call import Call
from prunekit.adapter import ModelAdapter
from prunekit.cache import PrunedLayer, cache_layer, pruned_layer
from prunekit.errors import UnsupportedCacheError, UnsupportedInputError
from prunekit.masks import cut_mask, padding_mask
from prunekit.sequence import gather

__all__ = ["Decoder"]


class Decoder:
    """What happens at a decoder layer besides its stage.

    A layer that holds fewer tokens than the model believes is handed masks, rotary tables and positions cut to its own
    tokens, and its cache is told which columns come in. All layers that hold the same tokens share one cut.
    """

    def __init__(self, adapter: ModelAdapter, compact: bool) -> None:
        self.adapter, self.compact = adapter, compact

    @property
    def config(self) -> Any:
        """The language model's configuration."""
        return self.adapter.text_model.config

    # --- the language model's entry ----------------------------------------------------------------------------------

    def enter(self, call: Call, cache: Any, kwargs: dict[str, Any], embeds: Tensor) -> dict[str, Any]:
        """What the language model is given instead: embeddings, mask and positions of the columns that enter."""
        seen = call.base
        first = cache_layer(cache, 0)
        if isinstance(first, PrunedLayer):
            seen = first.seen
        elif cache is not None:
            first = pruned_layer(cache, 0)
        own = first if isinstance(first, PrunedLayer) else None
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.shape[-1] != seen + call.length:
            raise UnsupportedInputError(
                f"attention_mask describes {mask.shape[-1]} tokens, but the KV cache has seen {seen} and"
                f" {call.length} are new; pass the mask of the whole conversation, dropped visual tokens included."
            )
        kwargs = {**kwargs, "inputs_embeds": embeds}
        # Without a mask and a cache, transformers would take the gaps in the positions for the seams of packed samples.
        if mask is not None or cache is None or call.padded(call.entry) or (own is not None and own.padded):
            keys = self._keys(call.entry, call.length, own, embeds.device)
            real = (keys >= 0).expand(embeds.shape[0], -1)
            kwargs["attention_mask"] = real if mask is None else cut_mask(mask, keys, call.entry)
        kwargs["position_ids"] = self._positions(call, own, call.entry)
        return kwargs

    def expect_entry(self, call: Call, cache: Any) -> None:
        """Tell layer 0's cache what comes in."""
        if cache is not None and (call.entry is not None or isinstance(cache_layer(cache, 0), PrunedLayer)):
            new = call.length if call.entry is None else call.entry
            pruned_layer(cache, 0).expect(new, call.length, call.padded(call.entry), self._moved(call, call.entry))

    # --- one layer ---------------------------------------------------------------------------------------------------

    def cut(self, call: Call, layer: int, hidden: Tensor, kwargs: dict[str, Any]) -> dict[str, Any] | None:
        """What a later layer is given instead, for the columns that are left; None: nothing differs."""
        cache, index = kwargs.get("past_key_values"), call.index
        own = cache_layer(cache, layer)
        if index is not None and cache is not None:
            own = pruned_layer(cache, layer)
        elif not isinstance(own, PrunedLayer):
            own = None
        if own is not None and own.seen != call.base:
            raise UnsupportedCacheError(
                f"The KV cache of layer {layer} has seen {own.seen} tokens and that of layer 0 {call.base}: it was not"
                " filled by the same stages from the start."
            )
        if index is None and (own is None or self._plain(own, kwargs)):  # decoding mostly ends here: keep it short
            if own is not None:
                own.expect(call.entered, call.entered, False, None)
            return None
        kwargs = dict(kwargs)
        columns, shift = (None, None) if own is None else (own.columns, own.shift)
        mask = kwargs.get("attention_mask")
        kwargs["attention_mask"] = call.once("mask", mask, columns, lambda mask: self._mask(call, own, mask, hidden))
        if self.compact:
            positions = call.once("compact", call.positions, shift, lambda _: self._positions(call, own, index))
            tables = call.once("rotary", positions, None, lambda numbers: self.adapter.rotary(hidden, numbers))
            kwargs.update(position_ids=positions, position_embeddings=tables)
        elif index is not None:
            for name in ("position_ids", "position_embeddings"):
                kwargs[name] = call.once(name, kwargs.get(name), None, lambda value: _gather_each(value, index))
        if own is not None:
            new = call.entered if index is None else index
            own.expect(new, call.entered, call.padded(index), self._moved(call, index))
        return kwargs

    def _plain(self, own: PrunedLayer, kwargs: dict[str, Any]) -> bool:
        """Whether new tokens need nothing cut: no mask, no padding, positions as they are."""
        return kwargs.get("attention_mask") is None and not own.padded and not self.compact

    def _mask(self, call: Call, own: PrunedLayer | None, mask: Any, hidden: Tensor) -> Any:
        if mask is None and not call.padded(call.index) and not (own is not None and own.padded):
            return None
        keys = self._keys(call.index, call.entered, own, hidden.device)
        if mask is not None:
            return cut_mask(mask, keys, call.index)
        return padding_mask(keys, hidden.shape[1], self.config._attn_implementation, hidden.dtype)

    def _keys(self, pruned: Tensor | None, length: int, own: PrunedLayer | None, device: torch.device) -> Tensor:
        """Columns, of the mask a layer is handed, of all keys that it will hold: [batch or 1, keys]."""
        if own is not None:
            return own.cut(length if pruned is None else pruned, device)
        assert pruned is not None  # without a cache, only a pruned call gets here
        return pruned

    # --- the last layer ----------------------------------------------------------------------------------------------

    def restore(self, call: Call, output: Tensor) -> Tensor:
        """Put the states back into the caller's columns, with zeros where a token was dropped."""
        if call.sequence is None or (call.entry is None and call.index is None):
            return output
        origin = call.sequence.origin.to(output.device)
        spare = int(call.sequence.padded)  # one column more takes the padding, and is cut off
        full = output.new_zeros(output.shape[0], call.length + spare, output.shape[-1])
        index = torch.where(origin >= 0, origin, call.length) if spare else origin
        return full.scatter(1, index[..., None].expand_as(output), output)[:, : call.length]

    # --- positions ---------------------------------------------------------------------------------------------------

    def _moved(self, call: Call, pruned: Tensor | None) -> Tensor | None:
        """Visual tokens dropped from each row in this call, [batch, 1]; None where positions stay original."""
        return call.dropped(pruned.device) if self.compact and pruned is not None else None

    def _positions(self, call: Call, own: PrunedLayer | None, pruned: Tensor | None) -> Tensor:
        """Position ids of the columns that are left, [batch, left]."""
        positions = call.positions
        if pruned is not None:
            assert call.sequence is not None
            positions = gather(positions, call.sequence.origin)
            if self.compact:
                positions = positions - call.gaps()
        if self.compact and own is not None and own.shift is not None:
            positions = positions - own.shift
        return positions


def _gather_each(value: Any, index: Tensor) -> Any:
    """Gather columns of a tensor, or of each tensor of a tuple (cosines, sines)."""
    if value is None:
        return None
    return tuple(gather(part, index) for part in value) if isinstance(value, tuple) else gather(value, index)
