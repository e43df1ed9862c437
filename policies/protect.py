"""Protect: a region of the image that is never dropped."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from prunekit.errors import PolicyError, UnsupportedInputError
from prunekit.needs import Needs
from prunekit.policies._composed import joined_sites, normalised, scoring
from prunekit.policy import Products, ScoringPolicy
from prunekit.tokens import VisualTokens

__all__ = ["Protect"]


@dataclass(frozen=True)
class Protect(ScoringPolicy):
    """Keep the tokens of a region whatever they score, and spend the rest of the budget by another policy.

    Where the region has more tokens than the budget, the best of them stay. Tokens that score alike count by their
    order, all of them included: the region is a ranking by itself.

    Args:
        policy: scores the tokens.
        box: the region of every image, as shares of its height and width: top, left, bottom, right. A token belongs to
            it if its middle does.
    """

    policy: ScoringPolicy
    box: tuple[float, float, float, float] = (0.25, 0.25, 0.75, 0.75)

    def __post_init__(self) -> None:
        scoring("Protect", [self.policy])
        top, left, bottom, right = self.box
        if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
            raise PolicyError(
                f"Protect(box={self.box}): top, left, bottom, right, as shares of the image: 0 <= top < bottom <= 1 and"
                " 0 <= left < right <= 1."
            )

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return self.policy.needs

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        return joined_sites([self.policy])

    def region(self, tokens: VisualTokens) -> Bool[Tensor, "batch visual"]:
        """Which tokens belong to the region.

        Raises:
            UnsupportedInputError: the tokens form no grid.
        """
        if tokens.grid is None:
            raise UnsupportedInputError("Protect needs images whose visual tokens all form the same grid.")
        height, width = tokens.grid
        place = tokens.source.clamp(min=0) % (height * width)
        down, across = (place // width + 0.5) / height, (place % width + 0.5) / width
        top, left, bottom, right = self.box
        return (down >= top) & (down < bottom) & (across >= left) & (across < right) & tokens.valid

    def products(self, given: Products) -> int:
        return self.policy.products(given)

    def score(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        return normalised(self.policy.score(tokens), tokens, "rank") + 2.0 * self.region(tokens)
