"""Joint attention: what both the image and the question attend to inside the language model."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunekit.needs import Needs, Rows
from prunekit.policy import ScoringPolicy
from prunekit.reference import Reference
from prunekit.tokens import VisualTokens

__all__ = ["JointAttention"]

_IMAGE, _TEXT = Rows("image", reduce="max"), Rows("text", reduce="max")


@dataclass(frozen=True)
class JointAttention(ScoringPolicy):
    """Keep the visual tokens that visual tokens AND the text after the image attend to.

    `r_i = (sum over visual j of max over heads A_ji) * (sum over text t of max over heads A_ti)`, A the decoder's
    attention in the layer before the site. The score of FitPrune (arXiv 2409.10197), up to a factor.
    """

    needs = Needs([_IMAGE, _TEXT])
    sites = ("decoder",)
    reference = Reference(
        name="FitPrune",
        arxiv="2409.10197",
        year=2025,
        authors="Ye et al.",
        venue="AAAI",
        code="https://github.com/ywh187/FitPrune",
        commit="d28e418",
    )

    def score(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        return tokens.attention[_IMAGE] * tokens.attention[_TEXT]
