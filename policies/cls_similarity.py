"""[CLS] similarity: how much a patch looks like the whole image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunekit.needs import Needs, States
from prunekit.policy import ScoringPolicy
from prunekit.tokens import VisualTokens

__all__ = ["ClsSimilarity"]


@dataclass(frozen=True)
class ClsSimilarity(ScoringPolicy):
    """Keep the visual tokens whose encoder states have the largest cosine to that of [CLS]: `r_i = cos(h_i, h_cls)`.

    Args:
        layer: encoder layer whose states are compared, negative from the end; None for the site's own.
    """

    layer: int | None = None

    sites = ("vision", "connector")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(states=[States("hidden", self.layer), States("hidden", self.layer, of="cls")])

    def score(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        patches, cls = (tokens.states[each].float() for each in self.needs.states)
        return torch.nn.functional.cosine_similarity(patches, cls, dim=-1)
