"""PyramidDrop: half of the visual tokens go after every quarter of the language model."""

from __future__ import annotations

from dataclasses import dataclass, replace

from prunekit.errors import SiteError
from prunekit.keep import Keep
from prunekit.plan import Method, Stage
from prunekit.policies.cross_attention import CrossAttention
from prunekit.reference import Reference

__all__ = ["PyramidDrop"]


@dataclass(frozen=True)
class PyramidDrop(Method):
    """PyramidDrop (Xing et al., CVPR 2025, arXiv 2410.17247): visual redundancy grows with depth.

    Before the layers at 1/4, 2/4 and 3/4 of the depth (8, 16 and 24 of 32), keep the visual tokens that the last token
    attends to most in the layer to come, heads averaged: its queries and keys are computed on the states at hand. Each
    stage keeps the same share of what it is given: 1/2, 1/4 and 1/8 of the original tokens by default. Kept tokens are
    numbered anew. Authors' code: github.com/Cooperx521/PyramidDrop.

    Args:
        keep: visual tokens after the last stage: a share of the original ones (float) or a number (int).
        drops: number of stages, evenly spaced; 3 as published.

    Differs from the reference: key heads that several query heads share are taken for each of them, where the released
    code fails; nothing is cut at 2,048 tokens.
    """

    keep: int | float | Keep = 0.125
    drops: int = 3

    positions = "compact"
    reference = Reference(
        name="PyramidDrop",
        arxiv="2410.17247",
        year=2025,
        authors="Xing et al.",
        venue="CVPR",
        code="https://github.com/Cooperx521/PyramidDrop",
        licence="MIT",
        commit="6444f30",
    )

    def stages(self, depth: int) -> tuple[Stage, ...]:
        if not 1 <= self.drops < depth:
            raise SiteError(f"PyramidDrop(drops={self.drops}): {depth} layers have room for 1 to {depth - 1} stages.")
        last = Keep.of(self.keep)
        return tuple(
            Stage(
                f"decoder.{depth * number // (self.drops + 1)}",
                CrossAttention("last", ahead=True),
                replace(last, power=last.power * number / self.drops),
            )
            for number in range(1, self.drops + 1)
        )
