"""Multiply-adds of the parts of a model, from their shapes alone. The traced count must agree, to the last one.

Here are the formulas of single products and the language model; `closed_form_vision` has what lies before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prunekit.costs.closed_form_vision import Encoder
from prunekit.costs.products import attention, attention_rows, linear
from prunekit.errors import UnsupportedModelError, nearest

__all__ = ["Decoder", "Encoder", "attention", "attention_rows", "embedding_attention", "linear"]

TEXT = (
    "cohere",
    "cohere2",
    "gemma",
    "gemma2",
    "gemma3_text",
    "glm4v_moe_text",
    "glm4v_text",
    "llama",
    "mistral",
    "molmo2_text",
    "qwen2",
    "qwen2_5_vl_text",
    "qwen2_vl_text",
    "qwen3",
    "qwen3_moe",
    "qwen3_vl_moe_text",
    "qwen3_vl_text",
)
"""Values of `model_type` of the language models whose layers are those of `Decoder`."""


def embedding_attention(tokens: int, width: int) -> int:
    """Attention of all token states to each other, averaged over the queries by a product: `tokens^2 (width + 1)`."""
    return tokens * tokens * (width + 1)


@dataclass(frozen=True)
class Decoder:
    """Shapes of a Llama-like language model.

    Attributes:
        hidden: width D.
        heads: query heads.
        key_heads: key and value heads; fewer than `heads` under grouped-query attention.
        head_dim: width of a head; `heads * head_dim` need not be D.
        vocabulary: rows of the output head.
        mlps: multiply-adds of one token in the MLP of each layer.
        windows: of each layer the last tokens that it looks at while decoding; None: all.
    """

    hidden: int
    heads: int
    key_heads: int
    head_dim: int
    vocabulary: int
    mlps: tuple[int, ...]
    windows: tuple[int | None, ...]

    @classmethod
    def of(cls, config: Any) -> Decoder:
        """Read the shapes from a text config.

        Raises:
            UnsupportedModelError: nobody has compared this language model's layers with the formulas.
        """
        kind = str(config.model_type)
        if kind not in TEXT:
            raise UnsupportedModelError(
                f"The closed form does not know the language model {kind!r}; it knows {', '.join(TEXT)}."
                f"{nearest(kind, TEXT)} Count the real forward pass with prunekit.flops.count."
            )
        heads = config.num_attention_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        key_heads = getattr(config, "num_key_value_heads", None) or heads
        mlps = tuple(_mlp(config, layer) for layer in range(config.num_hidden_layers))
        return cls(config.hidden_size, heads, key_heads, head_dim, config.vocab_size, mlps, _windows(config))

    def projections(self, tokens: int) -> int:
        """Queries, keys, values and output of attention: `n (2 D Dq + 2 D Dkv)`, Dq and Dkv the widths of all heads."""
        queries, keys = self.heads * self.head_dim, self.key_heads * self.head_dim
        return 2 * linear(tokens, self.hidden, queries) + 2 * linear(tokens, self.hidden, keys)

    def layer(self, tokens: int, index: int = 0) -> int:
        """One layer of a prefill: `n (2 D Dq + 2 D Dkv) + 2 n^2 Dq + n MLP`."""
        attended = attention(tokens, tokens, self.heads, self.head_dim)
        return self.projections(tokens) + attended + tokens * self.mlps[index]

    def layers(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """All layers of a prefill.

        Args:
            tokens: that enter each layer, those of text included.
        """
        return tuple(self.layer(number, index) for index, number in enumerate(tokens))

    def decode(self, tokens: Sequence[int], steps: int, *, pruned: int | None = None) -> tuple[int, ...]:
        """The layers over `steps` decoded tokens, one by one, behind a prefill; the output head is `head(steps)`.

        A step is one token in each layer, whose query sees all keys that the layer holds and its own.

        Args:
            tokens: that the prefill gave each layer, those of text included.
            steps: tokens decoded.
            pruned: the first layer that a session prunes. From there on a layer with a sliding window forgets nothing
                (the window is in the mask), before it a layer holds what it looks at.
        """
        return tuple(
            self.projections(steps)
            + sum(attention(1, self._seen(i, held + step, pruned), self.heads, self.head_dim) for step in range(steps))
            + steps * self.mlps[i]
            for i, held in enumerate(tokens)
        )

    def cache_bytes(self, tokens: Sequence[int], *, value_bytes: int = 2, pruned: int | None = None) -> tuple[int, ...]:
        """Bytes of each layer's KV cache: `2 Dkv` numbers a token, of `value_bytes` each; arguments as of `decode`."""
        return tuple(
            2 * self.key_heads * self.head_dim * value_bytes * (self._seen(index, held, pruned) - 1)
            for index, held in enumerate(tokens)
        )

    def _seen(self, layer: int, held: int, pruned: int | None) -> int:
        """Keys that the query of a new token meets behind `held` tokens: at most a window, its own included."""
        window = self.windows[layer]
        whole = window is None or (pruned is not None and layer >= pruned)
        return held + 1 if whole else min(held + 1, window or 0)

    def rows(self, rows: int, keys: int) -> int:
        """Reading `rows` rows of a layer's attention, over `keys` keys."""
        return attention_rows(rows, keys, self.heads, self.head_dim)

    def head(self, rows: int) -> int:
        """The output head on `rows` positions."""
        return linear(rows, self.hidden, self.vocabulary)


def _mlp(config: Any, layer: int) -> int:
    """One token in a layer's MLP, gated and of three matrices: `3 D I`.

    In a mixture of experts: the router, `D E`, then the k experts that the token is sent to, and the shared ones,
    `3 D Ie (k + shared)`. Experts that a token is not sent to do not work for it.
    """
    experts: int = getattr(config, "num_experts", None) or getattr(config, "n_routed_experts", None) or 0
    dense = (
        not experts
        or layer < getattr(config, "first_k_dense_replace", 0)
        or layer in (getattr(config, "mlp_only_layers", None) or ())
        or (layer + 1) % getattr(config, "decoder_sparse_step", 1)
    )
    if dense:
        return 3 * linear(1, config.hidden_size, config.intermediate_size)
    working: int = config.num_experts_per_tok + (getattr(config, "n_shared_experts", None) or 0)
    router = linear(1, config.hidden_size, experts)
    return router + 3 * working * linear(1, config.hidden_size, config.moe_intermediate_size)


def _windows(config: Any) -> tuple[int | None, ...]:
    """The sliding window of each layer, as transformers' caches read it from a config."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"] * config.num_hidden_layers
    return tuple(window if kind == "sliding_attention" else None for kind in kinds)
