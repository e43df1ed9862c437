"""What a policy answers (`Selection`), and merging: applying what it says about the states of tokens."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from prunekit.tokens import VisualTokens

__all__ = ["Selection", "merged"]


@dataclass(frozen=True)
class Selection:
    """Which tokens stay, and what they become.

    Without `owner` and `mix`, kept tokens stay as they are. With `owner` (and `weight`) each becomes the weighted
    average of the tokens it owns; with `mix` any weighted sum.

    Attributes:
        kept: positions among the tokens the policy saw (not original numbers), ascending, [batch, kept]; -1 fills
            rows that keep fewer, at the right.
        counts: tokens kept by each row, as host integers; None lets the core read them from `kept`.
        scores: what the ranking was made from, [batch, visual], for the trace; or None.
        owner: the slot in `kept` that each token is averaged into, [batch, visual]; -1 drops it. Usually a kept token
            owns itself.
        weight: the weight of each token in its owner's average, [batch, visual]; None means 1.
        mix: weights of all tokens in each slot, [batch, kept, visual + extra]; not normalised. Excludes `owner`.
        extra: further states that `mix` can use, [batch, extra, dim] (the encoder's [CLS]); or None.
        bias: added to the logits of all later attention to the kept tokens, [batch, kept]: the logarithm of their sizes
            makes attention proportional. Inside the vision encoder only.
    """

    kept: Int[Tensor, "batch kept"]
    counts: tuple[int, ...] | None = None
    scores: Float[Tensor, "batch visual"] | None = None
    owner: Int[Tensor, "batch visual"] | None = None
    weight: Float[Tensor, "batch visual"] | None = None
    mix: Float[Tensor, "batch kept all"] | None = None
    extra: Float[Tensor, "batch extra dim"] | None = None
    bias: Float[Tensor, "batch kept"] | None = None

    @classmethod
    def everything(cls, tokens: VisualTokens) -> Selection:
        """The selection that keeps all tokens."""
        index = torch.arange(tokens.source.shape[1], device=tokens.source.device)
        return cls(torch.where(tokens.valid, index, -1), tokens.counts)

    @property
    def merges(self) -> bool:
        """Whether kept tokens change."""
        return self.owner is not None or self.mix is not None

    def trimmed(self, slots: int) -> Selection:
        """The same without the slots behind the first ones, which no row fills."""
        if slots == self.kept.shape[1]:
            return self
        mix, bias = (None if value is None else value[:, :slots] for value in (self.mix, self.bias))
        return replace(self, kept=self.kept[:, :slots], mix=mix, bias=bias)

    def in_order(self, order: Int[Tensor, "batch kept"], visual: int) -> Selection:
        """The same tokens fed on in another order: slot i takes what slot `order[:, i]` has, and nothing where -1.

        `kept` stays as it is: it says which columns are used, and these stay ascending.

        Args:
            order: numbers of slots.
            visual: number of tokens that the policy saw.
        """
        if self.mix is not None:
            mix = self.mix.gather(1, order.clamp(min=0)[..., None].expand(-1, -1, self.mix.shape[-1]))
            return replace(self, mix=mix * (order >= 0)[..., None])
        slots = order.shape[1]
        back = _inverse(order, slots)
        owner = _inverse(self.kept, visual) if self.owner is None else self.owner
        return replace(self, owner=torch.where(owner >= 0, back.gather(1, owner.clamp(min=0)), -1))


def _inverse(index: Tensor, size: int) -> Tensor:
    """Where in `index` [batch, n] each of `size` numbers stands, [batch, size]; -1 where it does not."""
    place = torch.arange(index.shape[1], device=index.device).expand(index.shape)
    empty = torch.full((len(index), size + 1), -1, device=index.device)  # the last column takes what is unused
    return empty.scatter(1, torch.where(index >= 0, index, size), place)[:, :size]


def merged(hidden: Float[Tensor, "batch visual dim"], selection: Selection) -> Float[Tensor, "batch kept dim"]:
    """States of the kept tokens: as they were, or merged; rows that keep fewer hold anything at their end.

    Sums are computed in float32 and returned in the dtype of `hidden`.
    """
    if selection.mix is not None:
        states = hidden if selection.extra is None else torch.cat([hidden, selection.extra.to(hidden)], 1)
        return (selection.mix.float() @ states.float()).to(hidden.dtype)
    if selection.owner is None:
        index = selection.kept.clamp(min=0)[..., None]
        return hidden.gather(1, index.expand(-1, -1, hidden.shape[-1]))
    kept = selection.kept.shape[1]
    owner = torch.where(selection.owner >= 0, selection.owner, kept)  # one slot more takes what is dropped
    weight = torch.ones_like(owner, dtype=torch.float32) if selection.weight is None else selection.weight.float()
    tokens = hidden.float() * weight[..., None]
    sums = tokens.new_zeros(tokens.shape[0], kept + 1, tokens.shape[-1])
    sums = sums.scatter_add(1, owner[..., None].expand_as(tokens), tokens)[:, :kept]
    total = weight.new_zeros(weight.shape[0], kept + 1).scatter_add(1, owner, weight)[:, :kept, None]
    return (sums / total.clamp(min=torch.finfo(total.dtype).tiny)).to(hidden.dtype)
