"""What follows a prefill: the KV cache in bytes, and the multiply-adds of tokens that are generated one by one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers.cache_utils import DynamicSlidingWindowLayer

from prunekit.adapter import ModelAdapter
from prunekit.costs.repeats import RecordingCache
from prunekit.errors import CostError
from prunekit.flops import Cost

__all__ = ["BITS", "Caches", "activation_bytes"]

BITS = {"float32": 32, "bfloat16": 16, "float16": 16, "float8": 8, "int8": 8, "int4": 4}
"""Bits of a number in the KV cache."""


@dataclass(frozen=True)
class Caches:
    """The caches of all decoder layers after a prefill.

    Attributes:
        model: name of the model's class.
        lengths: keys that each layer holds.
        windows: keys that each layer holds at most; None: any number.
        numbers: numbers that one key and its value are made of, in each layer.
        tokens: tokens of a sample that each layer was given.
        macs: multiply-adds of each layer, of all samples.
        pairs: multiply-adds of one query and one key in each layer, Q K^T and the average of V.
        head: multiply-adds of the output head for one token.
        batch: samples.
        bits: of a number.
    """

    model: str
    lengths: tuple[int, ...]
    windows: tuple[int | None, ...]
    numbers: tuple[int, ...]
    tokens: tuple[int, ...]
    macs: tuple[int, ...]
    pairs: int
    head: int
    batch: int
    bits: int

    @classmethod
    def of(cls, adapter: ModelAdapter, cache: RecordingCache, cost: Cost, dtype: str) -> Caches:
        """Read the caches that a prefill has filled, whose multiply-adds are `cost`."""
        config: Any = adapter.model.config.get_text_config(decoder=True)
        if getattr(config, "is_heterogeneous", False):
            raise CostError(
                f"The decoder layers of {type(adapter.model).__name__} differ in their heads and widths, so that caches"
                " and decoding have no closed form; prunekit.flops.count counts its prefill."
            )
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        brought = [cache.brought[index] for index in range(adapter.depth)]
        batch = brought[0][0][0]
        layers: list[Any] = cache.layers
        return cls(
            model=type(adapter.model).__name__,
            lengths=tuple(int(layer.keys.shape[2]) for layer in layers),
            windows=tuple(
                layer.sliding_window - 1 if type(layer) is DynamicSlidingWindowLayer else None for layer in layers
            ),
            numbers=tuple(keys[1] * keys[3] + values[1] * values[3] for keys, values in brought),
            tokens=tuple(keys[2] for keys, _ in brought),
            macs=cost.prefill_per_layer,
            pairs=2 * config.num_attention_heads * width,
            head=cost.macs["lm_head"] // batch,
            batch=batch,
            bits=BITS[dtype],
        )

    def bytes(self, tokens: int) -> int:
        """Bytes of all keys and values after `tokens` generated tokens."""
        held = [_at_most(length + tokens, window) for length, window in zip(self.lengths, self.windows, strict=True)]
        return self.batch * sum(n * size for n, size in zip(held, self.numbers, strict=True)) * self.bits // 8

    def decode_macs(self, steps: int) -> int:
        """Multiply-adds of `steps` steps, one token a sample each: exact, in every layer over the keys it holds.

        A step costs a layer what a token costs it without attention, and `2 Dq` for each key, Dq being the width of all
        query heads. The former is the layer's traced work on n tokens, less `2 n^2 Dq`, divided by n.

        Raises:
            CostError: a layer's work is not of that form.
        """
        if not steps:
            return 0
        total = steps * self.head
        for index, (length, window) in enumerate(zip(self.lengths, self.windows, strict=True)):
            free = steps if window is None else min(steps, max(0, window - length))  # steps until the window is full
            seen = free * length + free * (free + 1) // 2
            seen += (steps - free) * (0 if window is None else window + 1)
            total += steps * self._linear(index) + self.pairs * seen
        return self.batch * total

    def _linear(self, index: int) -> int:
        """Multiply-adds of one token in a layer, without attention."""
        tokens = self.tokens[index]
        each, rest = divmod(self.macs[index] - self.batch * tokens**2 * self.pairs, self.batch * tokens)
        if rest or each < 0:
            raise CostError(
                f"Layer {index} of {self.model} does more than matrices times tokens and attention, so that decoding"
                " has no closed form; leave decode_tokens out."
            )
        return each


def _at_most(length: int, window: int | None) -> int:
    return length if window is None else min(length, window)


def activation_bytes(config: Any, tokens: int, batch: int, dtype: str) -> int:
    """About how many bytes of activations a decoder layer holds at its widest point, KV cache and weights apart.

    On n tokens: in the MLP `n (2 D + 3 I)` numbers (residual stream, normed states, gate, up projection, their
    product), in attention `n (2 D + 2 (Dq + Dkv) + Dkv + Dq)` (residual stream, normed states, queries and keys before
    and behind rotary embedding, values, what attention returns); the larger of the two. A fused kernel is assumed:
    under `eager`, a map of `heads * n^2` numbers comes on top. Of a mixture of experts, I is the width of all experts
    that a token is sent to.

    Args:
        config: of the language model.
        tokens: of a sample in the layer with the most.
        batch: samples.
        dtype: of the activations; 2 bytes a number where the KV cache is quantised.
    """
    heads, hidden = config.num_attention_heads, config.hidden_size
    width = getattr(config, "head_dim", None) or hidden // heads
    queries, keys = heads * width, (getattr(config, "num_key_value_heads", None) or heads) * width
    inner: int = config.intermediate_size
    if getattr(config, "num_experts_per_tok", None) and getattr(config, "moe_intermediate_size", None):
        inner = max(inner, config.num_experts_per_tok * config.moe_intermediate_size)
    numbers: int = 2 * hidden + max(3 * inner, 3 * queries + 3 * keys)
    return batch * tokens * numbers * max(BITS[dtype], 16) // 8
