"""DivPrune: prune before the language model by diversity alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunekit.errors import BudgetError
from prunekit.keep import Keep
from prunekit.plan import Method, Stage
from prunekit.policies.diversity import Diversity

__all__ = ["DivPrune"]


@dataclass(frozen=True)
class DivPrune(Method):
    """DivPrune (Alvar et al., CVPR 2025, arXiv 2503.02175): a diversity-based token pruning.

    Between projector and language model, keep the projected tokens that solve the max-min diversity problem greedily,
    see `Diversity`. Neither text nor attention is read. Authors' code: github.com/vbdi/divprune (CC BY-NC 4.0; written
    here from the formula).

    Args:
        keep: visual tokens that stay: a share of the original ones (float) or a number (int).
        variant: how a share becomes a number: `paper` floors it, as everywhere in prunekit; `released` rounds to the
            nearest, halves to even, as the authors' code does.

    Differs from the reference: the authors' code decides by the first sample of a batch and for all of them, and takes
    the image to begin at position 35; here every row is decided by itself, wherever its images are.
    """

    keep: int | float | Keep = 0.098
    variant: Literal["paper", "released"] = "paper"

    positions = "compact"
    reference = Diversity.reference

    def stages(self, depth: int) -> tuple[Stage, ...]:
        if self.variant == "paper":
            return (Stage("input", Diversity(), Keep.of(self.keep)),)
        keep = Keep.of(self.keep)
        if keep.ratio is None or keep != Keep(ratio=keep.ratio):
            near = keep.ratio if keep.tokens is None else keep.tokens / 576
            raise BudgetError(
                f"DivPrune(keep={self.keep!r}, variant='released'): its rounding is that of a share; of 576 visual"
                f" tokens the nearest is keep={near:.4g}."
            )
        return (Stage("input", Diversity(ratio=keep.ratio)),)
