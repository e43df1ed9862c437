"""FitPrune: delete a fitted number of visual tokens behind every decoder layer."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

from prunekit.errors import BudgetError, NeedsError
from prunekit.keep import Keep
from prunekit.plan import Method, Shape, Stage
from prunekit.policies.joint_attention import JointAttention

__all__ = ["FitPrune"]


@dataclass(frozen=True)
class FitPrune(Method):
    """FitPrune (Ye et al., AAAI 2025, arXiv 2409.10197): fit a schedule, then prune by it.

    Behind every decoder layer, delete the visual tokens with the lowest product of attention from visual tokens and
    from text (`JointAttention`). How many is fitted once for a model and a wanted saving, from the attention of a few
    samples: `prunekit fit` does it. Authors' code: github.com/ywh187/FitPrune.

    Args:
        deletions: visual tokens deleted behind each decoder layer, the first layer first, as `prunekit fit` prints
            them. What they would delete behind the last layer is of no use.
        visual: visual tokens of the images that they were fitted on; for others the numbers are scaled.

    Differs from the reference: the authors' code has fitted lists for LLaVA-1.5-7B, which are not part of prunekit. It
    removes tokens between a layer's attention and its MLP, here they go behind the layer: the other tokens' states are
    the same, and the layer's MLP runs on some more.
    """

    deletions: tuple[int, ...] = ()
    visual: int = 576

    knob = ""  # a schedule that was fitted as a whole
    reference = JointAttention.reference

    def __post_init__(self) -> None:
        if any(count < 0 for count in self.deletions) or sum(self.deletions) >= self.visual:
            raise BudgetError(
                f"FitPrune(deletions={list(self.deletions)}, visual={self.visual}): numbers are at least 0, and"
                " together below the number of visual tokens."
            )

    @classmethod
    def example(cls, shape: Shape) -> FitPrune:
        """An even schedule, fitted on nothing, that deletes half of the visual tokens on the way."""
        return cls((cls.visual // (2 * shape.depth),) * shape.depth)

    def stages(self, depth: int) -> tuple[Stage, ...]:
        if len(self.deletions) != depth:
            raise NeedsError(
                f"FitPrune needs a schedule that was fitted on this model, one number for each of its {depth} decoder"
                f" layers; given are {len(self.deletions)}. Make one with: prunekit fit MODEL --saving 0.5"
            )
        gone = accumulate(self.deletions)
        return tuple(
            Stage(f"decoder.{layer + 1}", JointAttention(), Keep(ratio=(self.visual - before) / self.visual))
            for layer, (before, count) in enumerate(zip(gone, self.deletions, strict=True))
            if count and layer + 1 < depth
        )
