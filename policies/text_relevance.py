"""Text relevance: how much a visual token is like the words of the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunekit.errors import PolicyError
from prunekit.needs import Needs
from prunekit.policy import Products, ScoringPolicy
from prunekit.tokens import VisualTokens

__all__ = ["TextRelevance"]


@dataclass(frozen=True)
class TextRelevance(ScoringPolicy):
    """Keep the visual tokens whose states are most like those of the text after the last image.

    `r_i = mean (or max) over text tokens t of cos(h_i, h_t)`, states at the site.

    Args:
        over: `mean` or `max`.
    """

    over: Literal["mean", "max"] = "mean"

    needs = Needs(text=True)
    sites = ("input", "decoder")

    def __post_init__(self) -> None:
        if self.over not in ("mean", "max"):
            raise PolicyError(f"TextRelevance(over={self.over!r}): allowed are 'mean' and 'max'.")

    def products(self, given: Products) -> int:
        return given.now * given.text * given.width

    def score(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        assert tokens.text is not None
        assert tokens.question is not None
        unit, words = (torch.nn.functional.normalize(each.float(), dim=-1) for each in (tokens.hidden, tokens.text))
        near = unit @ words.transpose(1, 2)  # [batch, visual, text]
        asked = tokens.question[:, None]
        if self.over == "max":
            return near.masked_fill(~asked, -1).amax(-1)
        return (near * asked).sum(-1) / asked.sum(-1).clamp(min=1)
