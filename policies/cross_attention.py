"""Text-to-visual cross-attention: what the question finds important."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from prunekit.errors import NeedsError, nearest
from prunekit.needs import Needs, Rows
from prunekit.policies.self_attention import SelfAttention
from prunekit.policy import ScoringPolicy
from prunekit.tokens import VisualTokens

__all__ = ["CrossAttention"]

_QUERIES = ("text", "last", "instruction")


@dataclass(frozen=True)
class CrossAttention(ScoringPolicy):
    """Keep the visual tokens that the text attends to most, inside the language model. Stage 2 of STAR.

    `r_i = mean over text tokens q and heads of A_qi`, A the decoder's own attention in the layer before the site
    (pruning before layer K reads layer K - 1), softmax over all keys that the text token sees.

    Args:
        queries: which text looks: `text`, every text token after the last image (those before it cannot see it in a
            causal decoder); `last`, the last token alone (FastV); `instruction`, `text` without the cue for the
            answer.
        layer: decoder layer whose attention is read, negative from the end; None for the one before the site.
        cue: tokens at the prompt's end that ask for the answer, for `instruction`: 1 in the bundled model
            (`ASSISTANT:`), 5 in LLaVA-1.5 (`▁A SS IST ANT :`).
        ahead: read the layer AFTER the site instead, on the states before anything is dropped there (PyramidDrop,
            VScan); it costs that layer's query and key projections once more.

    Differs from the reference: STAR's equation (arXiv 2505.12359) multiplies embeddings without heads or projections; a
    decoder's own attention is what its first lines describe and what the field calls cross-attention. At prefill
    there is no response yet, so that its response term is empty.
    """

    queries: Literal["text", "last", "instruction"] = "text"
    layer: int | None = None
    cue: int = 1
    ahead: bool = False

    sites = ("decoder",)
    reference = SelfAttention.reference  # both are stages of STAR

    def __post_init__(self) -> None:
        if self.queries not in _QUERIES:
            hint = nearest(str(self.queries), _QUERIES)
            raise NeedsError(f"CrossAttention(queries={self.queries!r}): allowed are {', '.join(_QUERIES)}.{hint}")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(Rows(self.queries, self.layer, reduce="mean", cue=self.cue, ahead=self.ahead))

    def score(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        return tokens.attention[self.queries]
