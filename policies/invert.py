"""Invert: the opposite of a policy, to see whether its score means anything."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunekit.needs import Needs
from prunekit.policies._composed import scoring
from prunekit.policy import Products, ScoringPolicy
from prunekit.tokens import VisualTokens

__all__ = ["Invert"]


@dataclass(frozen=True)
class Invert(ScoringPolicy):
    """Keep the visual tokens that another policy scores lowest: `r_i = -s_i`.

    Args:
        policy: whose scores are turned around.
    """

    policy: ScoringPolicy

    def __post_init__(self) -> None:
        scoring("Invert", [self.policy])

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return self.policy.needs

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.policy.sites

    def products(self, given: Products) -> int:
        return self.policy.products(given)

    def score(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        return -self.policy.score(tokens)
