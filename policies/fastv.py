"""FastV: prune before an early decoder layer by the last token's attention."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.keep import Keep
from prunekit.plan import Method, Stage
from prunekit.policies.cross_attention import CrossAttention
from prunekit.reference import Reference

__all__ = ["FastV"]


@dataclass(frozen=True)
class FastV(Method):
    """FastV (Chen et al., ECCV 2024, arXiv 2403.06764): an image is worth half a token after layer 2.

    Before decoder layer K, keep the visual tokens that the LAST token attends to most in layer K - 1, heads averaged.
    Kept tokens stay in order and keep their position ids; the prompt is pruned once, at prefill, as in the authors'
    version with a KV cache. Authors' code: github.com/pkunlp-icler/FastV (no licence; written here from the paper's
    description).

    Args:
        keep: visual tokens after layer K: a share of the original ones (float) or a number (int). The paper's R is
            the share that is dropped: `keep = 1 - R`.
        layer: K, 2 in the paper.

    Differs from the reference: a share is floored here; the authors' files round in three different ways. The paper
    speaks of the average attention a token receives; the authors' code takes the last token's, and so does this.
    """

    keep: int | float | Keep = 0.5
    layer: int = 2

    reference = Reference(
        name="FastV",
        arxiv="2403.06764",
        year=2024,
        authors="Chen et al.",
        venue="ECCV",
        code="https://github.com/pkunlp-icler/FastV",
        licence="no licence",
        commit="d165972",
    )

    def stages(self, depth: int) -> tuple[Stage, ...]:
        return (Stage(f"decoder.{self.layer}", CrossAttention("last"), Keep.of(self.keep)),)
