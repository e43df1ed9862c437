"""What stands in for the layers of a KV cache once they are pruned, by kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicIndexedLayer

from prunekit.cache import PrunedLayer
from prunekit.errors import UnsupportedCacheError

__all__ = ["PrunedIndexedLayer", "PrunedReferenceLayer", "pruned_layer"]


class PrunedIndexedLayer(PrunedLayer, DynamicIndexedLayer):
    """The same where an indexer picks the tokens to look at: its keys come and go with the others."""


class PrunedReferenceLayer(PrunedLayer):
    """The same for a window over what is generated, before which the whole prompt stays, as in Unlimited-OCR.

    Attributes:
        prefill_length: columns of the prompt; None until they have come in. The model reads it for its mask.
    """

    prefill_length: int | None

    def __init__(self, layer: Any) -> None:
        super().__init__(layer)
        self._layer_type = layer._layer_type  # not of the class: those are registered, to be made for new caches
        if self.is_initialized:  # the prompt before this one is apart, and what is between may be forgotten in part
            prompt, rest = layer.prefill_keys.shape[-2], layer.keys.shape[-2]
            columns = torch.arange(self.seen)[None]
            self.columns, self.tail = torch.cat([columns[:, :prompt], columns[:, self.seen - rest :]], 1), 0
            self.keys = torch.cat([layer.prefill_keys, layer.keys], dim=-2)
            self.values = torch.cat([layer.prefill_values, layer.values], dim=-2)

    @property
    def always(self) -> int:
        return self.prefill_length or 0

    def set_prefill_length(self, prefill_length: int) -> None:
        """Be told by `generate` how long the prompt will be."""
        self.prefill_length = prefill_length

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        states = super().update(key_states, value_states, *args, **kwargs)
        if self.prefill_length is None:
            self.prefill_length = self.seen
        return states

    def reset(self) -> None:
        super().reset()
        self.prefill_length = None


PRUNED: dict[str, Callable[[Any], PrunedLayer]] = {
    "DynamicLayer": PrunedLayer,
    "DynamicSlidingWindowLayer": PrunedLayer,
    "DynamicIndexedLayer": PrunedIndexedLayer,
    "UnlimitedOcrDynamicReferenceSlidingWindowLayer": PrunedReferenceLayer,
}
"""What stands in for the layers of a cache, by the names of their classes."""


def pruned_layer(cache: Cache, index: int) -> PrunedLayer:
    """Make layer `index` of a cache a `PrunedLayer`, in place, while the model runs, and return it.

    Raises:
        UnsupportedCacheError: the cache is static, quantised or of another kind whose layers cannot differ in length.
    """
    if cache.layer_class_to_replicate is not None:
        while len(cache.layers) <= index:
            cache.layers.append(cache.layer_class_to_replicate())
    layer = cache.layers[index]
    if isinstance(layer, PrunedLayer):
        return layer
    make = PRUNED.get(type(layer).__name__)
    if make is None:
        raise UnsupportedCacheError(
            f"{type(cache).__name__} with {type(layer).__name__} cannot be pruned: its layers cannot differ in length."
            " Use transformers.DynamicCache (the default of generate)."
        )
    cache.layers[index] = pruned = make(layer)
    pruned.running = True
    return pruned
