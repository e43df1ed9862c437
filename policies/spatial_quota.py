"""SpatialQuota: every part of the image keeps its share."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from prunekit.errors import PolicyError, UnsupportedInputError
from prunekit.keep import Keep
from prunekit.needs import Needs
from prunekit.policies._composed import joined_sites, scoring
from prunekit.policies._greedy import picked, rank_within
from prunekit.policy import Products, PruningPolicy, ScoringPolicy
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["SpatialQuota"]


@dataclass(frozen=True)
class SpatialQuota(PruningPolicy):
    """Cut every image into `rows` x `columns` windows, keep the best tokens of each, equally many.

    What cannot be divided equally, or what a window has not, goes to the best tokens that are left.

    Args:
        policy: scores the tokens.
        rows: windows from top to bottom.
        columns: windows from left to right.
    """

    policy: ScoringPolicy
    rows: int = 2
    columns: int = 2

    def __post_init__(self) -> None:
        scoring("SpatialQuota", [self.policy])
        if self.rows < 1 or self.columns < 1:
            raise PolicyError(f"SpatialQuota(rows={self.rows}, columns={self.columns}): must be at least 1.")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return self.policy.needs

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        return joined_sites([self.policy])

    def products(self, given: Products) -> int:
        return self.policy.products(given)

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        assert keep is not None
        if tokens.grid is None:
            raise UnsupportedInputError("SpatialQuota needs images whose visual tokens all form the same grid.")
        height, width = tokens.grid
        counts, number = tokens.budget(keep), tokens.source.clamp(min=0)
        image, place = number // (height * width), number % (height * width)
        line, column = place // width * self.rows // height, place % width * self.columns // width
        windows = self.rows * self.columns
        many = [windows * max(1, total // (height * width)) for total in tokens.total]
        quota = [count // parts for count, parts in zip(counts, many, strict=True)]
        scores = self.policy.score(tokens).float().masked_fill(~tokens.valid, -torch.inf)
        window = (image * windows + line * self.columns + column).masked_fill(~tokens.valid, windows * 2**20)
        first = rank_within(window, scores) < torch.tensor(quota, device=scores.device)[:, None]
        order = scores.argsort(dim=1, descending=True, stable=True)
        order = order.gather(1, (~(first & tokens.valid)).gather(1, order).to(torch.uint8).argsort(dim=1, stable=True))
        return replace(picked(order[:, : max(counts)], counts, scores.shape[1]), scores=scores)
