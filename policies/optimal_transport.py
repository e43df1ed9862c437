"""Optimal transport: how much of the image each token carries to the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunekit.errors import PolicyError
from prunekit.keep import Keep
from prunekit.policies._greedy import picked
from prunekit.policies.uniform_grid import strided
from prunekit.policy import Products, PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["OptimalTransport"]


@dataclass(frozen=True)
class OptimalTransport(PruningPolicy):
    """Keep the tokens that contribute most to an optimal transport of all tokens onto themselves.

    The cost of moving token i to token j is `(1 - cos(h_i, h_j)) / 2 + space * |p_i - p_j| + centre * |p_j - p_c|`, p
    the tokens' places in the image, its sides scaled to 1, p_c its centre. Sinkhorn iterations in log space, with even
    weights of all tokens, give the plan `P`; the contribution of j is the mass that arrives from the others,
    `sum over i != j of P_ij exp(-C_ij / epsilon)`. Of the budget, the share `recover` goes to tokens at equal steps
    among those that would be dropped. The idea of TopV (arXiv 2503.18278).

    Args:
        space: weight of distance.
        centre: weight of the distance from the centre.
        epsilon: regularisation, in units of the cost.
        iterations: of Sinkhorn.
        recover: share of the budget that is recovered.
    """

    space: float = 0.25
    centre: float = 0.25
    epsilon: float = 0.1
    iterations: int = 10
    recover: float = 0.1

    reference = Reference(
        name="TopV",
        arxiv="2503.18278",
        year=2025,
        authors="Yang et al.",
        venue="CVPR",
        unproven="no code of the authors is known to us",
    )

    def __post_init__(self) -> None:
        if self.epsilon <= 0 or self.iterations < 1 or not 0 <= self.recover < 1:
            raise PolicyError(
                f"OptimalTransport(epsilon={self.epsilon}, iterations={self.iterations}, recover={self.recover}):"
                " epsilon must be above 0, iterations at least 1, recover at least 0 and below 1."
            )

    def products(self, given: Products) -> int:
        return given.now**2 * given.width

    def score(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        """The contribution of each token."""
        cost, valid = self._cost(tokens), tokens.valid
        kernel = (-cost / self.epsilon).masked_fill(~(valid[:, None] & valid[..., None]), torch.finfo(cost.dtype).min)
        there = valid.sum(1, keepdim=True).clamp(min=1)
        even = torch.where(valid, -there.float().log(), 0.0)
        rows, columns = torch.zeros_like(even), torch.zeros_like(even)
        for _ in range(self.iterations):
            rows = (even - (kernel + columns[:, None]).logsumexp(2)) * valid
            columns = (even - (kernel + rows[..., None]).logsumexp(1)) * valid
        plan = (kernel + rows[..., None] + columns[:, None]).exp()
        itself = torch.eye(plan.shape[1], dtype=torch.bool, device=plan.device)
        return (plan * kernel.exp()).masked_fill(itself, 0).sum(1)

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        assert keep is not None
        counts, scores = tokens.budget(keep), self.score(tokens)
        order = scores.masked_fill(~tokens.valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
        width = order.shape[1]
        place = torch.arange(width, device=order.device)
        spared = [min(int(count * self.recover), now - count) for count, now in zip(counts, tokens.counts, strict=True)]
        first = torch.tensor([c - s for c, s in zip(counts, spared, strict=True)], device=order.device)[:, None]
        best = torch.zeros_like(tokens.valid).scatter(1, order, place < first)
        rest = (best | ~tokens.valid).to(torch.uint8).argsort(dim=1, stable=True)  # dropped ones in order, first
        steps = torch.full((len(counts), max(max(spared), 1)), -1)
        for row, (count, more, now) in enumerate(zip(counts, spared, tokens.counts, strict=True)):
            steps[row, :more] = strided(more, now - count + more)
        steps = steps.to(order.device)
        found = rest.gather(1, steps.clamp(min=0)).masked_fill(steps < 0, width)
        stays = torch.nn.functional.pad(best, (0, 1)).scatter(1, found, True)[:, :width]
        kept = picked((~stays).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts)], counts, width)
        return Selection(kept.kept, counts, scores)

    def _cost(self, tokens: VisualTokens) -> Tensor:
        unit = torch.nn.functional.normalize(tokens.hidden.float(), dim=-1)
        places = self._places(tokens)
        middle = torch.linalg.vector_norm(places - 0.5, dim=-1)
        apart: Tensor = torch.cdist(places, places)
        cost: Tensor = (1 - unit @ unit.transpose(1, 2)) / 2 + self.space * apart + self.centre * middle[:, None]
        return cost

    def _places(self, tokens: VisualTokens) -> Tensor:
        """Where in its image each token is, [batch, visual, 2]; on a line where images have no grid."""
        number = tokens.source.clamp(min=0)
        if tokens.grid is None or not tokens.per_image:
            most = torch.tensor(tokens.total, device=number.device)[:, None].clamp(min=1)
            line = (number + 0.5) / most
            return torch.stack([line, torch.full_like(line, 0.5)], -1)
        height, width = tokens.grid
        place = number % (height * width)
        return torch.stack([(place // width + 0.5) / height, (place % width + 0.5) / width], -1)
