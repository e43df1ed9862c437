"""Diversity: tokens that are as different from each other as can be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from prunekit.errors import BudgetError
from prunekit.keep import Keep
from prunekit.policies._greedy import LEAST, cosines, first_best, picked
from prunekit.policy import Products, PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["Diversity"]

_ROUNDING = 1e-6  # of a cosine in float32; two tokens that are nearest to each other tie


@dataclass(frozen=True)
class Diversity(PruningPolicy):
    """Keep the tokens whose smallest distance to each other is greedily made large (max-min diversity).

    With `d_ij = 1 - cos(h_i, h_j)`, the first pick is the token farthest from its nearest neighbour, and every next one
    the token farthest from all picked ones. The score behind DivPrune (arXiv 2503.02175). Ties go to the first token.

    Args:
        ratio: the share that is kept, rounded to the nearest number of tokens (halves to even), for a stage without
            `Keep`; None for a stage with one.
    """

    ratio: float | None = None

    reference = Reference(
        name="DivPrune",
        arxiv="2503.02175",
        year=2025,
        authors="Alvar et al.",
        venue="CVPR",
        code="https://github.com/vbdi/divprune",
        licence="CC BY-NC 4.0",
        commit="799e2d9",
        variants=("paper", "released"),
    )

    def __post_init__(self) -> None:
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise BudgetError(f"Diversity(ratio={self.ratio!r}): must be above 0 and at most 1.")

    @property
    def needs_keep(self) -> bool:  # type: ignore[override]
        return self.ratio is None

    def planned(self, total: int) -> int | None:
        return None if self.ratio is None else min(total, max(1, round(self.ratio * total)))

    def order(self, tokens: VisualTokens, keep: Keep | None) -> Int[Tensor, "batch kept"]:
        """Tokens in the order in which they are picked."""
        valid, counts = tokens.valid, self._counts(tokens, keep)
        distance = 1 - cosines(tokens.hidden)
        itself = torch.eye(distance.shape[1], dtype=torch.bool, device=distance.device)
        others = distance.masked_fill(itself | ~valid[:, None], torch.inf)
        nearest = others.amin(-1).masked_fill(~valid, LEAST)  # a token alone in its row is infinitely far
        picks: list[Tensor] = []
        taken = ~valid
        for _ in range(max(counts)):
            pick = first_best(nearest, _ROUNDING)
            row = distance.gather(1, pick[..., None].expand(-1, -1, distance.shape[2]))[:, 0]
            taken = taken.scatter(1, pick, True)
            nearest = (torch.minimum(nearest, row) if picks else row).masked_fill(taken, LEAST)
            picks.append(pick)
        return torch.cat(picks, 1) if picks else valid.new_zeros(len(counts), 0, dtype=torch.long)

    def products(self, given: Products) -> int:
        return given.now**2 * given.width

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        return picked(self.order(tokens, keep), self._counts(tokens, keep), tokens.valid.shape[1])

    def _counts(self, tokens: VisualTokens, keep: Keep | None) -> tuple[int, ...]:
        if keep is not None:
            return tokens.budget(keep)
        return tuple(min(self.planned(total) or 0, now) for total, now in zip(tokens.total, tokens.counts, strict=True))
