"""FitPrune: delete a fitted number of visual tokens behind every decoder layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from jaxtyping import Float
from torch import Tensor

from prunekit.errors import BudgetError, NeedsError
from prunekit.keep import Keep
from prunekit.plan import Method, Shape, Stage
from prunekit.policies.joint_attention import JointAttention

__all__ = ["FitPrune"]

_HALVINGS = 30
"""Steps of the search for the bound: it ends within 1e-9."""


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

    The authors fit (`statistical_analysis.py`) by running the model pruned, anew for every bound that they try: in each
    sample go the tokens that are among the lowest by both masses, each compared with that of the unpruned model, and
    the numbers are averaged; their FLOPs are those of visual tokens alone. Here the model runs once, unpruned
    (`within`), and FLOPs are those of the whole prompt (`prunekit.fitting`).
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

    @classmethod
    def within(
        cls,
        epsilon: float,
        image: Float[Tensor, "layers samples visual"],
        text: Float[Tensor, "layers samples visual"],
        counts: Sequence[int],
    ) -> FitPrune:
        """The schedule that deletes as much as a bound on the lost attention allows, layer by layer.

        From the first layer on, each deletes the tokens with the lowest scores, as many as it can: of the attention
        that the tokens left there receive, the deleted ones may hold a share of `epsilon`, on average over the samples;
        of that from visual tokens and of that from text, each. Deleted tokens stay deleted, and one token is always
        left. Attention is that of the unpruned model: that tokens deleted before would have received does not count, as
        if the softmax had given it to those left in equal proportion.

        Args:
            epsilon: the bound, 0 to 1.
            image: attention that each visual token receives from visual tokens, behind every decoder layer but the
                last, without pruning; up to a factor for each sample. What is beyond a sample's tokens is not read.
            text: the same from the text after the image.
            counts: visual tokens of each sample. The largest of them becomes `visual`; samples with fewer lose the
                same share.
        """
        visual, sizes = max(counts), torch.tensor(counts, device=image.device)[:, None]
        kept = torch.arange(1, visual + 1, device=image.device)
        last = (kept * sizes // visual).clamp(min=1) - 1  # place of a sample's last token if `visual` keep so many
        real = kept <= sizes
        alive, left, deletions = real, visual, list[int]()
        for masses in zip(image, text, strict=True):
            scores = (masses[0] * masses[1]).masked_fill(~alive, -1.0).masked_fill(~real, -torch.inf)
            order = scores.argsort(dim=1, descending=True, stable=True)  # as a stage does: ties to the first
            near = torch.ones_like(kept, dtype=torch.bool)
            for mass in masses:
                held = mass.double().masked_fill(~alive, 0.0).gather(1, order).cumsum(1)
                near &= 1 - (held / held[:, -1:]).gather(1, last).mean(0) <= epsilon
            keep = int((~near).sum()) + 1  # at most `left`: keeping those loses nothing
            alive = order.argsort(dim=1) <= last[:, keep - 1, None]
            deletions.append(left - keep)
            left = keep
        return cls((*deletions, 0), visual)

    @classmethod
    def fit(
        cls,
        image: Float[Tensor, "layers samples visual"],
        text: Float[Tensor, "layers samples visual"],
        counts: Sequence[int],
        saving: float,
        saves: Callable[[FitPrune], float],
    ) -> tuple[FitPrune, float]:
        """The schedule of a low bound that saves enough, and this bound, by bisection.

        What is saved need not grow with the bound everywhere: the bound is the lowest one up to such dents.

        Args:
            image: see `within`, like `text` and `counts`.
            saving: wanted share of the dense cost.
            saves: the share that a schedule saves.

        Raises:
            BudgetError: `saving` is not between 0 and 1, or beyond what deleting all tokens but one saves.
        """
        if not 0 < saving < 1:
            raise BudgetError(f"saving={saving}: a share of the dense model's cost, above 0 and below 1.")
        low, high = 0.0, 1.0
        found = cls.within(high, image, text, counts)
        if saves(found) < saving:
            raise BudgetError(
                f"saving={saving}: FitPrune cannot save that much; with these samples up to {saves(found):.4f} can be"
                " reached. The first layer always runs on all tokens, and text is never deleted."
            )
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            schedule = cls.within(middle, image, text, counts)
            if saves(schedule) >= saving:
                found, high = schedule, middle
            else:
                low = middle
        return found, high
