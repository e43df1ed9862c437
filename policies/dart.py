"""DART: drop what duplicates, before an early decoder layer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from prunekit.errors import BudgetError, PolicyError, nearest
from prunekit.keep import Keep
from prunekit.plan import Method, Stage
from prunekit.policies.duplication import Duplication

__all__ = ["DART"]

_VARIANTS = ("paper", "released")


@dataclass(frozen=True)
class DART(Method):
    """DART (Wen et al., EMNLP 2025, arXiv 2502.11494): duplication matters more than importance.

    Before decoder layer K, keep a few pivots and the tokens that are least similar to them, see `Duplication`. The
    authors' code is public as a copy in github.com/Chenfei-Liao/VTC-Bench; github.com/ModelTC/LightCompress has another
    implementation of the same rule.

    Args:
        keep: visual tokens that stay: a share of the original ones (float) or a number (int).
        layer: K, 2 as published.
        images: pivots among the visual tokens.
        texts: pivots among the question's tokens.
        variant: `released` lets each of the pivots take `keep // pivots` tokens, besides the visual pivots (128 becomes
            132), in the order of a Python set; `paper` keeps exactly `keep`.

    Differs from the reference: in the default variant the order of turns and the division of what is left over are
    ours; they change 2 to 9 of some hundred tokens.
    """

    keep: int | float | Keep = 128
    layer: int = 2
    images: int = 4
    texts: int = 4
    variant: Literal["paper", "released"] = "paper"

    reference = Duplication.reference

    def __post_init__(self) -> None:
        if self.variant not in _VARIANTS:
            hint = nearest(str(self.variant), _VARIANTS)
            raise PolicyError(f"DART(variant={self.variant!r}): allowed are {', '.join(_VARIANTS)}.{hint}")
        keep = Keep.of(self.keep)
        if self.variant == "released" and (keep.tokens is None or keep != Keep(tokens=keep.tokens)):
            raise BudgetError(
                f"DART(keep={self.keep!r}, variant='released'): its budget is a number of tokens; of 576 visual tokens"
                f" the nearest is keep={keep.tokens or keep.count(576)}."
            )

    def stages(self, depth: int) -> tuple[Stage, ...]:
        site, keep, policy = f"decoder.{self.layer}", Keep.of(self.keep), Duplication(self.images, self.texts)
        if self.variant == "paper" or keep.tokens is None:
            return (Stage(site, policy, keep),)
        return (Stage(site, replace(policy, released=True, taken=keep.tokens // (self.images + self.texts))),)
