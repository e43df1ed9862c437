"""Mix: a weighted sum of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunekit.errors import PolicyError
from prunekit.needs import Needs
from prunekit.policies._composed import NORMALISATIONS, joined_needs, joined_sites, normalised, scoring
from prunekit.policy import Products, ScoringPolicy
from prunekit.tokens import VisualTokens

__all__ = ["Mix"]


@dataclass(frozen=True)
class Mix(ScoringPolicy):
    """Keep the visual tokens with the largest weighted sum of several scores: `r_i = sum over k of w_k s_ki`.

    Args:
        policies: whose scores are mixed.
        weights: one for each; equal ones by default.
        normalise: how scores are brought to one scale first, over the tokens of a row: `rank`, `minmax` or `zscore`.
    """

    policies: list[ScoringPolicy]
    weights: list[float] | None = None
    normalise: Literal["rank", "minmax", "zscore"] = "rank"

    def __post_init__(self) -> None:
        scoring("Mix", self.policies)
        if not self.policies or (self.weights is not None and len(self.weights) != len(self.policies)):
            given = None if self.weights is None else len(self.weights)
            raise PolicyError(f"Mix: {len(self.policies)} policies and {given} weights; give one weight for each.")
        if self.normalise not in NORMALISATIONS:
            raise PolicyError(f"Mix(normalise={self.normalise!r}): allowed are {', '.join(NORMALISATIONS)}.")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return joined_needs(self.policies)

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        return joined_sites(self.policies)

    def products(self, given: Products) -> int:
        return sum(policy.products(given) for policy in self.policies)

    def score(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        weights = self.weights or [1.0] * len(self.policies)
        parts = [
            weight * normalised(policy.score(tokens), tokens, self.normalise)
            for policy, weight in zip(self.policies, weights, strict=True)
        ]
        return torch.stack(parts).sum(0)
