"""What policies that are made from others share."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from prunekit.errors import PolicyError
from prunekit.needs import Needs
from prunekit.policy import PruningPolicy, ScoringPolicy
from prunekit.tokens import VisualTokens

__all__ = ["NORMALISATIONS", "joined_needs", "joined_sites", "normalised", "scoring"]

NORMALISATIONS = ("rank", "minmax", "zscore")


def scoring(who: str, policies: Sequence[object]) -> None:
    """Raise `PolicyError` where a part has no scores to compose."""
    for policy in policies:
        if not isinstance(policy, ScoringPolicy):
            raise PolicyError(f"{who} composes scores, but {policy!r} is no ScoringPolicy.")


def joined_needs(policies: Sequence[PruningPolicy]) -> Needs:
    """Everything that any of them reads.

    Raises:
        PolicyError: two of them want attention keys of different layers.
    """
    needs = [policy.needs for policy in policies]
    keys = {each.keys for each in needs if each.keys is not None}
    if len(keys) > 1:
        raise PolicyError(f"{' and '.join(map(repr, policies))} read attention keys of different layers.")
    return Needs(
        dict.fromkeys(rows for each in needs for rows in each.attention),
        keys=next(iter(keys), False),
        text=any(each.text for each in needs),
        states=dict.fromkeys(states for each in needs for states in each.states),
        patches=any(each.patches for each in needs),
        side=dict.fromkeys(name for each in needs for name in each.side),
        bias=any(each.bias for each in needs),
    )


def joined_sites(policies: Sequence[PruningPolicy]) -> tuple[str, ...]:
    """Kinds of sites at which all of them work."""
    return tuple(site for site in PruningPolicy.sites if all(site in policy.sites for policy in policies))


def normalised(scores: Tensor, tokens: VisualTokens, how: str) -> Tensor:
    """Scores of each row brought to a common scale; 0 where there is no token.

    - `rank`: from 0 (lowest) to 1 (highest), in equal steps; equal scores share the middle of theirs.
    - `minmax`: `(s - min) / (max - min)`.
    - `zscore`: `(s - mean) / standard deviation`.

    All scores of a row are NaN where one of them is: nothing brings it into an order.
    """
    scores, valid = scores.float(), tokens.valid
    there = valid.sum(1, keepdim=True)
    if how == "rank":
        scores = scores.masked_fill(~valid, torch.inf)
        rising = scores.sort(dim=1).values
        lower = torch.searchsorted(rising, scores)
        alike = torch.searchsorted(rising, scores, right=True).minimum(there) - lower
        rank = (lower + (alike - 1) / 2) / (there - 1).clamp(min=1)
        return rank.masked_fill(scores.isnan().any(1, keepdim=True), torch.nan).masked_fill(~valid, 0)
    tiny = torch.finfo(torch.float32).tiny
    if how == "minmax":
        low = scores.masked_fill(~valid, torch.inf).amin(1, keepdim=True)
        high = scores.masked_fill(~valid, -torch.inf).amax(1, keepdim=True)
        return ((scores - low) / (high - low).clamp(min=tiny)).masked_fill(~valid, 0)
    mean = scores.masked_fill(~valid, 0).sum(1, keepdim=True) / there.clamp(min=1)
    apart = (scores - mean).masked_fill(~valid, 0)
    return apart / (apart.square().sum(1, keepdim=True) / there.clamp(min=1)).sqrt().clamp(min=tiny)
