"""Union: a quota of the budget by each of several scores."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from prunekit.errors import PolicyError
from prunekit.keep import Keep
from prunekit.needs import Needs
from prunekit.policies._composed import joined_needs, joined_sites, normalised, scoring
from prunekit.policies._greedy import picked
from prunekit.policy import Products, PruningPolicy, ScoringPolicy
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["Union"]


@dataclass(frozen=True)
class Union(PruningPolicy):
    """Spend a share of the budget by one score, and the rest by others: half by the image, half by the question.

    Policies choose one after the other among what is left, so that no token is chosen twice; the last one takes what
    the division leaves over. The trace holds the sum of their ranks; nothing is chosen by it.

    Args:
        policies: whose scores are used, in order.
        shares: of the budget, one for each; equal ones by default. Brought to sum 1.
    """

    policies: list[ScoringPolicy]
    shares: list[float] | None = None

    def __post_init__(self) -> None:
        scoring("Union", self.policies)
        shares = [1.0] * len(self.policies) if self.shares is None else self.shares
        if not self.policies or len(shares) != len(self.policies) or min(shares) < 0 or sum(shares) <= 0:
            raise PolicyError(
                f"Union: {len(self.policies)} policies and shares {self.shares}; give one share for each, at least 0,"
                " and not all 0."
            )

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return joined_needs(self.policies)

    @property
    def sites(self) -> tuple[str, ...]:  # type: ignore[override]
        return joined_sites(self.policies)

    def products(self, given: Products) -> int:
        return sum(policy.products(given) for policy in self.policies)

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        assert keep is not None
        counts, width = tokens.budget(keep), tokens.valid.shape[1]
        stays = torch.zeros_like(tokens.valid)
        ranks = torch.arange(width, device=stays.device)
        quotas: list[Tensor] = self._quotas(counts, stays.device)
        scores = [policy.score(tokens).float() for policy in self.policies]
        for score, quota in zip(scores, quotas, strict=True):
            order = score.masked_fill(stays | ~tokens.valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
            stays = stays.scatter(1, order, stays.gather(1, order) | (ranks < quota))
        selection = picked((~stays).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts)], counts, width)
        return replace(selection, scores=torch.stack([normalised(score, tokens, "rank") for score in scores]).sum(0))

    def _quotas(self, counts: tuple[int, ...], device: torch.device) -> list[Tensor]:
        """Tokens that each policy chooses of each row, [batch, 1] for each policy."""
        shares = [1.0] * len(self.policies) if self.shares is None else self.shares
        parts = [[int(count * share / sum(shares)) for share in shares] for count in counts]
        for row, count in zip(parts, counts, strict=True):
            row[-1] += count - sum(row)
        return [torch.tensor(column, device=device)[:, None] for column in zip(*parts, strict=True)]
