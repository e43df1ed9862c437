"""FasterVLM: prune before the language model by the vision encoder's [CLS] attention."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.keep import Keep
from prunekit.plan import Method, Stage
from prunekit.policies.self_attention import SelfAttention
from prunekit.reference import Reference

__all__ = ["FasterVLM"]


@dataclass(frozen=True)
class FasterVLM(Method):
    """FasterVLM (Zhang et al., arXiv 2412.01818v1): [CLS] attention is all you need.

    Between projector and language model, keep the tokens that [CLS] attends to most in the encoder layer that
    produces the features (LLaVA-1.5: layer 22 of 24), heads averaged, in their spatial order. Authors' code:
    github.com/Theia-4869/FasterVLM (Apache-2.0).

    Args:
        keep: visual tokens that stay: a share of the original ones (float) or a number (int).
    """

    keep: int | float | Keep = 0.25

    reference = Reference(
        name="FasterVLM",
        arxiv="2412.01818v1",
        year=2024,
        authors="Zhang et al.",
        code="https://github.com/Theia-4869/FasterVLM",
        licence="Apache-2.0",
        commit="f5d5f12",
    )

    def stages(self, depth: int) -> tuple[Stage, ...]:
        return (Stage("input", SelfAttention("cls"), Keep.of(self.keep)),)
