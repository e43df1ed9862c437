"""PerImage: no image of a sample is lost to the others."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate, pairwise

from prunekit.keep import Keep
from prunekit.needs import Needs
from prunekit.policies._composed import scoring
from prunekit.policy import Products, PruningPolicy, ScoringPolicy, top_k_per_image
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["PerImage"]


@dataclass(frozen=True)
class PerImage(PruningPolicy):
    """Split a sample's budget over its images by their numbers of tokens, and rank tokens within each image.

    `Keep(..., per="image")` gives every image the same budget instead; this keeps the sample's.

    Args:
        policy: scores the tokens.
    """

    policy: ScoringPolicy

    sites = ("input", "decoder")

    def __post_init__(self) -> None:
        scoring("PerImage", [self.policy])

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return self.policy.needs

    def products(self, given: Products) -> int:
        return self.policy.products(given)

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        assert keep is not None
        counts = tokens.budget(keep)
        left = tokens.budget_per_image(Keep(ratio=1.0))  # all that there are, or a BudgetError that says why not
        budget = []
        for count, alive in zip(counts, left, strict=True):
            ends = [0, *accumulate(alive)]
            budget.append(
                tuple(count * e // max(1, ends[-1]) - count * s // max(1, ends[-1]) for s, e in pairwise(ends))
            )
        scores = self.policy.score(tokens).float()
        return Selection(top_k_per_image(scores, tokens, tuple(budget)), counts, scores)
