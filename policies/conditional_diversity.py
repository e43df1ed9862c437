"""Conditional diversity: different tokens, given what is relevant (a determinantal point process)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunekit.errors import NeedsError, nearest
from prunekit.keep import Keep
from prunekit.needs import Needs
from prunekit.policies._greedy import LEAST, cosines, first_best, picked
from prunekit.policy import Products, PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["ConditionalDiversity"]

_RELEVANCE = ("text", "clip")
_ROUNDING = 2e-6  # of the largest gain at first
_NOISE = 1e-5  # of a token's own gain: what is left of one that the picked ones span, in float32


@dataclass(frozen=True)
class ConditionalDiversity(PruningPolicy):
    """Keep the tokens whose determinant is large: each relevant, and all of them different.

    Greedy maximum of `det(L_S)` for the kernel `L_ij = r_i cos(h_i, h_j) r_j`, `h` the states at the site and `r` the
    relevance, brought to [0, 1] over the tokens of a row: `(r - min + 1e-6) / (max - min)`. Each pick costs one pass
    over the tokens (Cholesky updates). The score behind CDPruner (arXiv 2506.10967). Ties go to the first token.
    A token that the picked ones span adds nothing; where only such are left, they are taken in order.

    - `text`: the cosine of a token to the question's tokens at the site, averaged over them.
    - `clip`: the negated mean cosine of `image_embeds` [batch, visual, dim] to `text_embeds` [texts, dim] or
      [batch, texts, dim]: a CLIP model's view of every patch and of the question, given through `session.side`. The
      sign is that of CDPruner's released code.

    Args:
        relevance: `text` or `clip`.
        coupled: whether minimum and maximum run over all rows of the batch.
    """

    relevance: Literal["text", "clip"] = "text"
    coupled: bool = False

    sites = ("input", "decoder")
    reference = Reference(
        name="CDPruner",
        arxiv="2506.10967",
        year=2025,
        authors="Zhang et al.",
        venue="NeurIPS",
        code="https://github.com/Theia-4869/CDPruner",
        licence="Apache-2.0",
        commit="9541616",
        variants=("paper", "released"),
    )

    def __post_init__(self) -> None:
        if self.relevance not in _RELEVANCE:
            hint = nearest(str(self.relevance), _RELEVANCE)
            raise NeedsError(f"ConditionalDiversity(relevance={self.relevance!r}): allowed are 'text', 'clip'.{hint}")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(text=True) if self.relevance == "text" else Needs(side=("image_embeds", "text_embeds"))

    def relevances(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        """The relevance of each token, brought to [0, 1]."""
        if self.relevance == "text":
            assert tokens.text is not None
            assert tokens.question is not None
            unit = torch.nn.functional.normalize(tokens.hidden.float(), dim=-1)
            words = torch.nn.functional.normalize(tokens.text.float(), dim=-1) * tokens.question[..., None]
            there = tokens.question.sum(1, keepdim=True).clamp(min=1)
            raw = (unit * words.sum(1, keepdim=True)).sum(-1) / there
        else:
            patches, texts = (tokens.side[name].float() for name in ("image_embeds", "text_embeds"))
            index = tokens.source.clamp(min=0)[..., None].expand(-1, -1, patches.shape[-1])
            patches = torch.nn.functional.normalize(patches.gather(1, index), dim=-1)
            texts = torch.nn.functional.normalize(texts, dim=-1).expand(len(patches), -1, -1)
            raw = -(patches @ texts.transpose(1, 2)).mean(-1)
        over = (0, 1) if self.coupled else 1
        low = raw.masked_fill(~tokens.valid, torch.inf).amin(over, keepdim=True)
        high = raw.masked_fill(~tokens.valid, -torch.inf).amax(over, keepdim=True)
        return (raw - low + 1e-6) / (high - low).clamp(min=1e-6)

    def order(self, tokens: VisualTokens, keep: Keep | None) -> Int[Tensor, "batch kept"]:
        """Tokens in the order in which they are picked."""
        assert keep is not None
        relevance = self.relevances(tokens)
        kernel = relevance[..., None] * cosines(tokens.hidden) * relevance[:, None]
        alone = kernel.diagonal(dim1=1, dim2=2)
        gain = alone.masked_fill(~tokens.valid, LEAST)
        slack = (_ROUNDING * gain.amax(1, keepdim=True)).nan_to_num(0).clamp(min=0)
        noise = _NOISE * alone
        steps = max(tokens.budget(keep))
        found = kernel.new_zeros(len(kernel), steps, kernel.shape[1])  # rows of the Cholesky factor
        picks, taken = [], ~tokens.valid
        for step in torch.arange(steps, device=found.device).split(1):
            pick = first_best(gain, slack)
            picks.append(pick)
            own = found.gather(2, pick[:, None].expand(-1, steps, -1))  # [batch, steps, 1]
            row = kernel.gather(1, pick[..., None].expand(-1, -1, kernel.shape[2]))[:, 0]
            left = gain.gather(1, pick)
            update = (row - (own * found).sum(1)) / left.clamp(min=torch.finfo(torch.float32).tiny).sqrt()
            update = torch.where(left > 0, update, 0)
            found = found.index_copy(1, step, update[:, None])
            taken = taken.scatter(1, pick, True)
            gain = gain - update.square()
            gain = torch.where(gain > noise, gain, 0).masked_fill(taken, LEAST)
        return torch.cat(picks, 1) if picks else tokens.valid.new_zeros(len(kernel), 0, dtype=torch.long)

    def products(self, given: Products) -> int:
        return given.now**2 * given.width

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        assert keep is not None
        return picked(self.order(tokens, keep), tokens.budget(keep), tokens.valid.shape[1])
