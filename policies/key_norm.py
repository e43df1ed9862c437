"""Key norm: how large the attention keys are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from prunekit.errors import PolicyError
from prunekit.needs import Keys, Needs
from prunekit.policy import ScoringPolicy
from prunekit.tokens import VisualTokens

__all__ = ["KeyNorm"]


@dataclass(frozen=True)
class KeyNorm(ScoringPolicy):
    """Keep the visual tokens whose attention keys, all heads together, have the largest norm: `r_i = |k_i|_p`.

    Args:
        p: 1 or 2.
        layer: whose keys are read, negative from the end; None for the site's own.
    """

    p: int = 2
    layer: int | None = None

    def __post_init__(self) -> None:
        if self.p not in (1, 2):
            raise PolicyError(f"KeyNorm(p={self.p}): allowed are 1 and 2.")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(keys=Keys(self.layer))

    def score(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        assert tokens.keys is not None
        keys = rearrange(tokens.keys.float(), "b h n d -> b n (h d)")
        norm: Tensor = torch.linalg.vector_norm(keys, self.p, dim=-1)
        return norm
