"""Coverage: tokens that stand for all others, weighted by how important they are."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from prunekit.errors import PolicyError
from prunekit.keep import Keep
from prunekit.needs import Needs, Rows, States
from prunekit.policies._greedy import LEAST, cosines, first_best, picked
from prunekit.policy import Products, PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["Coverage"]

_FEATURES = States("hidden", of_vision=True)
_ROUNDING = 2e-6  # of the largest gain at first


@dataclass(frozen=True)
class Coverage(PruningPolicy):
    """Keep the tokens that together are similar to as many tokens as possible, important ones first.

    Greedily, the token with the largest `a_v^alpha * sum over u of max(0, cos(u, v) - c_u)`, where `c_u` is the largest
    cosine of u to a picked token (0 at first) and `a_v` the [CLS] attention; cosines are those of the encoder's
    features. The score behind SCOPE (arXiv 2510.24214). Ties go to the first token.

    Args:
        alpha: the weight of attention; 0 reads none and takes coverage alone.
    """

    alpha: float = 1.0

    sites = ("input", "decoder")
    reference = Reference(
        name="SCOPE",
        arxiv="2510.24214",
        year=2025,
        venue="NeurIPS",
        code="https://github.com/kinredon/SCOPE",
        commit="6bf7306",
    )

    def __post_init__(self) -> None:
        if self.alpha < 0:
            raise PolicyError(f"Coverage(alpha={self.alpha}): must be at least 0.")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        rows = [Rows("cls", reduce="mean")] if self.alpha else []
        return Needs(rows, states=_FEATURES)

    def order(self, tokens: VisualTokens, keep: Keep | None) -> Int[Tensor, "batch kept"]:
        """Tokens in the order in which they are picked."""
        assert keep is not None
        valid = tokens.valid
        similar = cosines(tokens.states[_FEATURES]) * valid[:, None] * valid[..., None]  # padding covers nothing
        weight = tokens.attention["cls"].float() ** self.alpha if self.alpha else torch.ones_like(similar[:, 0])
        covered = torch.zeros_like(weight)
        taken = ~valid
        picks: list[Tensor] = []
        slack = torch.zeros_like(weight[:, :1])
        for _ in range(max(tokens.budget(keep))):
            gain = (similar - covered[..., None]).clamp(min=0).sum(1) * weight  # [batch, candidates]
            gain = gain.masked_fill(taken, LEAST)
            if not picks:  # two tokens that cover each other alone tie, too
                slack = (_ROUNDING * gain.amax(1, keepdim=True)).nan_to_num(0).clamp(min=0)
            pick = first_best(gain, slack)
            picks.append(pick)
            own = similar.gather(2, pick[:, None].expand(-1, similar.shape[1], -1))[..., 0]
            covered = torch.maximum(covered, own)
            taken = taken.scatter(1, pick, True)
        return torch.cat(picks, 1) if picks else valid.new_zeros(len(valid), 0, dtype=torch.long)

    def products(self, given: Products) -> int:
        return given.now**2 * given.features

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        assert keep is not None
        return picked(self.order(tokens, keep), tokens.budget(keep), tokens.valid.shape[1])
