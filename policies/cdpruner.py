"""CDPruner: prune before the language model by diversity that is conditioned on the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunekit.keep import Keep
from prunekit.plan import Method, Stage
from prunekit.policies.conditional_diversity import ConditionalDiversity

__all__ = ["CDPruner"]


@dataclass(frozen=True)
class CDPruner(Method):
    """CDPruner (Zhang et al., NeurIPS 2025, arXiv 2506.10967): beyond attention or similarity, conditional diversity.

    Between projector and language model, keep the projected tokens that a determinantal point process picks, see
    `ConditionalDiversity`. Authors' code: github.com/Theia-4869/CDPruner.

    Args:
        keep: visual tokens that stay: a share of the original ones (float) or a number (int).
        relevance: `clip` is published; its embeddings of patches and question have to be given through `session.side`,
            since a language model has no CLIP text tower. `text` takes the language model's own embeddings of the
            question: ours, and works on every model without anything given.
        variant: `released` brings relevance to [0, 1] over the whole batch, so that samples depend on their neighbours;
            `paper` does so for each sample.

    Differs from the reference: the default reads relevance from the language model's embeddings.
    """

    keep: int | float | Keep = 64
    relevance: Literal["text", "clip"] = "text"
    variant: Literal["paper", "released"] = "paper"

    positions = "compact"
    reference = ConditionalDiversity.reference

    def stages(self, depth: int) -> tuple[Stage, ...]:
        policy = ConditionalDiversity(self.relevance, coupled=self.variant == "released")
        return (Stage("input", policy, Keep.of(self.keep)),)
