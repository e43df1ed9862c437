"""Norm: how large the states are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunekit.policy import ScoringPolicy
from prunekit.tokens import VisualTokens

__all__ = ["Norm"]


@dataclass(frozen=True)
class Norm(ScoringPolicy):
    """Keep the visual tokens whose states at the site have the largest L2 norm: `r_i = |h_i|`."""

    def score(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        norm: Tensor = torch.linalg.vector_norm(tokens.hidden.float(), dim=-1)
        return norm
