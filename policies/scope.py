"""SCOPE: prune before the language model by coverage times [CLS] attention."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.keep import Keep
from prunekit.plan import Method, Stage
from prunekit.policies.coverage import Coverage

__all__ = ["SCOPE"]


@dataclass(frozen=True)
class SCOPE(Method):
    """SCOPE (NeurIPS 2025, arXiv 2510.24214): saliency and coverage together.

    Before the language model, keep the tokens whose encoder features cover those of all others, weighted by the
    attention of [CLS] in the layer that produces the features (LLaVA-1.5: 22 of 24), see `Coverage`. Authors' code:
    github.com/kinredon/SCOPE.

    Args:
        keep: visual tokens that stay: a share of the original ones (float) or a number (int).
        alpha: the weight of attention, 1 as published.

    Differs from the reference: the released code divides the budget by the number of rows (tiles) of a batch; here a
    budget is that of one sample. Attention is averaged over heads instead of summed, which ranks alike.
    """

    keep: int | float | Keep = 64
    alpha: float = 1.0

    positions = "compact"
    reference = Coverage.reference

    def stages(self, depth: int) -> tuple[Stage, ...]:
        return (Stage("input", Coverage(self.alpha), Keep.of(self.keep)),)
