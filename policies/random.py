"""Random tokens: the control that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunekit.policy import ScoringPolicy
from prunekit.tokens import VisualTokens

__all__ = ["Random"]

_PRIME = 2_147_483_647  # 2^31 - 1: products of two residues stay inside 64 bits


@dataclass(frozen=True)
class Random(ScoringPolicy):
    """Keep a random subset, drawn anew for every image, and the same for the same image, seed and site.

    Each token's score is a hash of the seed, its number and a fingerprint of the row (which channel is largest in
    each of its tokens). So the draw does not depend on the batch a sample is in, on its order, or on the device.

    Args:
        seed: another seed gives other subsets.
    """

    seed: int = 0

    def score(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        largest = tokens.hidden.argmax(-1) + 1  # [batch, visual]
        row = (largest * (tokens.source + 1) * tokens.valid).sum(1, keepdim=True) % _PRIME
        state = (row + 1_000_003 * (self.seed % _PRIME) + 7_919 * (tokens.source + 1)) % _PRIME
        for factor in (48_271, 69_621, 16_807):  # three rounds: neighbours must not stay neighbours
            state = (state ^ (state >> 15)) * factor % _PRIME
        return state.float() / _PRIME
