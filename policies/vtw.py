"""VTW: withdraw all visual tokens from a middle layer on."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from prunekit.errors import BudgetError, SiteError
from prunekit.keep import Keep
from prunekit.plan import Method, Stage
from prunekit.policy import PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["VTW"]


@dataclass(frozen=True)
class Withdraw(PruningPolicy):
    """Keep no visual token at all."""

    needs_keep = False
    sites = ("decoder",)

    def planned(self, total: int) -> int | None:
        return 0

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        rows = len(tokens.counts)
        return Selection(tokens.source.new_empty(rows, 0), (0,) * rows)


@dataclass(frozen=True)
class VTW(Method):
    """VTW (Lin et al., arXiv 2405.05803): visual tokens withdrawal.

    Before decoder layer K all visual tokens go: what they have to say has moved into the text by then. Nothing is
    scored.

    Args:
        layer: K; by default 15 of 32, the authors' choice for LLaVA-1.5-7B, at the same share of other depths.
            `VTW.search` finds another one; `prunekit fit MODEL --method VTW --threshold 0.99` runs it on a model.

    Differs from the reference: the authors search K on about 20 samples from layer 5 on; the threshold of their search
    is not known to us, and `search` asks for one.
    """

    layer: int | None = None

    knob = "layer"
    reference = Reference(
        name="VTW",
        arxiv="2405.05803",
        year=2024,
        authors="Lin et al.",
        unproven="all visual tokens go, so that there is no choice to compare",
    )

    def stages(self, depth: int) -> tuple[Stage, ...]:
        layer = max(1, round(15 / 32 * depth)) if self.layer is None else self.layer
        if not 1 <= layer < depth:
            raise SiteError(f"VTW(layer={layer}): all visual tokens go before it; allowed are 1 to {depth - 1}.")
        return (Stage(f"decoder.{layer}", Withdraw()),)

    @staticmethod
    def similarity(
        whole: Float[Tensor, "samples dim"], withdrawn: Float[Tensor, "layers samples dim"]
    ) -> Float[Tensor, " layers"]:
        """Mean cosine of final states with and without withdrawal, for each layer that was tried; see `search`."""
        return torch.nn.functional.cosine_similarity(withdrawn.float(), whole.float()[None], dim=-1).mean(1)

    @staticmethod
    def search(
        whole: Float[Tensor, "samples dim"],
        withdrawn: Float[Tensor, "layers samples dim"],
        threshold: float,
        first: int = 5,
    ) -> VTW:
        """The earliest layer at which withdrawal leaves the last token's final state nearly as it was.

        Args:
            whole: final states of the last token without withdrawal.
            withdrawn: the same with withdrawal before layer `first`, `first + 1`, ...
            threshold: the least mean cosine to `whole`.
            first: the earliest layer that was tried.

        Raises:
            BudgetError: no layer that was tried is near enough.
        """
        near = VTW.similarity(whole, withdrawn)
        good = [number for number, value in enumerate(near.tolist()) if value >= threshold]
        if not good:
            raise BudgetError(
                f"VTW.search: no layer from {first} to {first + len(near) - 1} leaves a mean cosine of {threshold:g};"
                f" the largest is {near.max():.4f}, at layer {first + int(near.argmax())}."
            )
        return VTW(layer=first + good[0])
