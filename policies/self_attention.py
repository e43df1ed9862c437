"""Visual self-attention: what the image itself finds important."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from prunekit.errors import NeedsError, nearest
from prunekit.needs import Needs, Rows
from prunekit.policy import Products, ScoringPolicy
from prunekit.reference import Reference
from prunekit.tokens import VisualTokens

__all__ = ["SelfAttention"]

_QUERIES = ("visual", "cls", "embedding")
_CHUNK = 512  # query tokens at a time, so that memory grows linearly with the tokens


@dataclass(frozen=True)
class SelfAttention(ScoringPolicy):
    """Keep the visual tokens that receive the most attention from the image.

    A token that many patches look at stands for them; one that nobody looks at is redundant. Stage 1 of STAR.

    - `visual`: `r_i = mean over visual tokens j and heads of A_ji`, A the attention of the encoder layer that
      produces the features (at `vision.<i>`: of layer i), softmax over all its tokens, [CLS] included.
    - `cls`: `r_i = mean over heads of A_[CLS],i` of that layer, the signal of FasterVLM (arXiv 2412.01818v1).
    - `embedding`: `r_i = mean over j of softmax_i(h_j . h_i / sqrt(d))` on the token states at the site, without
      heads or projections; STAR's equation (arXiv 2505.12359) as attention received.

    Args:
        queries: who looks: `visual`, `cls` or `embedding`.
        layer: encoder layer whose attention is read, negative from the end; None for the site's own. Not for
            `embedding`.

    Differs from the reference: STAR's equation averages over the axis that the softmax sums to one over, which gives
    every token the same score. This is the usable reading: softmax over the keys, mean over the queries.
    """

    queries: Literal["visual", "cls", "embedding"] = "visual"
    layer: int | None = None

    reference = Reference(
        name="STAR",
        arxiv="2505.12359",
        year=2025,
        authors="Guo et al.",
        title="STAR: Stage-Wise Attention-Guided Token Reduction for Efficient Large Vision-Language Models Inference",
        unproven="the authors have released no code",
    )

    def __post_init__(self) -> None:
        if self.queries not in _QUERIES:
            hint = nearest(str(self.queries), _QUERIES)
            raise NeedsError(f"SelfAttention(queries={self.queries!r}): allowed are {', '.join(_QUERIES)}.{hint}")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs() if self.queries == "embedding" else Needs(Rows(self.queries, self.layer, reduce="mean"))

    def products(self, given: Products) -> int:
        return given.now**2 * (given.width + 1) if self.queries == "embedding" else 0

    def score(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        if self.queries != "embedding":
            return tokens.attention[self.queries]
        full = min(tokens.counts) == max(tokens.counts)
        return attention_received(tokens.hidden, None if full else tokens.valid)


def attention_received(hidden: Tensor, valid: Tensor | None) -> Tensor:
    """Mean attention that each token receives from all tokens, `softmax(H H^T / sqrt(d))`: [batch, visual].

    Args:
        hidden: states, [batch, visual, dim].
        valid: which of them are tokens, [batch, visual]; None: all.
    """
    keys = hidden.float()
    scale, columns = keys.shape[-1] ** -0.5, keys.transpose(1, 2)
    received = torch.zeros(hidden.shape[0], 1, hidden.shape[1], device=hidden.device)
    real = torch.ones_like(received) if valid is None else valid[:, None].to(received.dtype)
    for start in range(0, hidden.shape[1], _CHUNK):
        part = slice(start, start + _CHUNK)
        logits = (keys[:, part] @ columns).mul_(scale)  # [batch, chunk, visual]; fewer of them than of states
        if valid is not None:
            logits = logits.masked_fill(~valid[:, None], torch.finfo(logits.dtype).min)
        received = received + real[..., part] @ logits.softmax(-1)  # a product sums fastest
    return received[:, 0] / real.sum(-1).clamp(min=1)
