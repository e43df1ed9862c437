"""Multiply-adds of single products."""

from __future__ import annotations

from itertools import pairwise

__all__ = ["attention", "attention_rows", "chain", "linear"]


def linear(tokens: int, inputs: int, outputs: int) -> int:
    """A linear layer: `tokens * inputs * outputs`. Its bias is an addition, and not counted."""
    return tokens * inputs * outputs


def chain(*widths: int) -> int:
    """One token through linear layers of these widths, one after the other."""
    return sum(linear(1, inputs, outputs) for inputs, outputs in pairwise(widths))


def attention(queries: int, keys: int, heads: int, head_dim: int) -> int:
    """Q K^T and the average of V, each in full: `2 * queries * keys * heads * head_dim`.

    A causal mask or a sliding window does not make it less, and neither does sharing keys among heads.
    """
    return 2 * queries * keys * heads * head_dim


def attention_rows(rows: int, keys: int, heads: int, head_dim: int) -> int:
    """What a policy reads from a layer's attention: Q K^T of some rows, without V."""
    return rows * keys * heads * head_dim
