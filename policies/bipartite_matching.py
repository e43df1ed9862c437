"""Bipartite soft matching: merge the pairs of tokens that are most alike, layer by layer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import BudgetError
from prunekit.keep import Keep
from prunekit.needs import Needs
from prunekit.policy import Products, PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["BipartiteMatching"]

_MEMORY = "bipartite matching"


@dataclass(frozen=True)
class BipartiteMatching(PruningPolicy):
    """Merge the most similar pairs between every other token and the rest. A step of ToMe (arXiv 2210.09461).

    Tokens are dealt in turn into two sets. Each of the first is matched with the one of the second whose attention key
    (heads averaged) has the largest cosine to its own; the best pairs merge, weighted by how many tokens each stands
    for. Tokens of the second set may take several. With a [CLS] token, turns begin at it.

    Args:
        steps: how many tokens are left after this step and those before it, `keep` and the number of all steps:
            `(number, of, keep)`; None takes the stage's own budget in one step.
        proportional: whether later attention weighs tokens by their sizes.
    """

    steps: tuple[int, int, Keep] | None = None
    proportional: bool = True

    sites = ("vision",)
    reference = Reference(
        name="ToMe",
        arxiv="2210.09461",
        year=2023,
        authors="Bolya et al.",
        venue="ICLR",
        code="https://github.com/facebookresearch/ToMe",
        licence="CC BY-NC 4.0",
        commit="af95e4b",
    )

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(keys=True, bias=self.proportional)

    @property
    def needs_keep(self) -> bool:  # type: ignore[override]
        return self.steps is None

    def planned(self, total: int) -> int | None:
        """Equally many go in each step; towards the end never more than half.

        Raises:
            BudgetError: the last budget is out of reach of so many halvings.
        """
        if self.steps is None:
            return None
        number, steps, keep = self.steps
        final = keep.count(total)
        if final << steps < total:
            raise BudgetError(
                f"{steps} steps of merging halve {total} tokens at most to {-(-total >> steps)}; {keep} asks for"
                f" {final}."
            )
        return min(total - (total - final) * (number + 1) // steps, final << (steps - 1 - number))

    def products(self, given: Products) -> int:
        return given.now**2 * given.head_dim

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        if keep is not None:
            counts = tokens.budget(keep)
        else:
            counts = tuple(min(self.planned(t) or 0, n) for t, n in zip(tokens.total, tokens.counts, strict=True))
        if any(2 * count < now for count, now in zip(counts, tokens.counts, strict=True)):
            least = [-(-now // 2) for now in tokens.counts]
            raise BudgetError(
                f"One step of merging halves {list(tokens.counts)} tokens at most to {least}; asked for are"
                f" {list(counts)}."
            )
        assert tokens.keys is not None
        size, rank = self._before(tokens)
        first = (rank + tokens.prefix) % 2 == 0
        unit = torch.nn.functional.normalize(tokens.keys.float().mean(1), dim=-1)
        partners = (~first & tokens.valid)[:, None]
        similar = (unit @ unit.transpose(1, 2)).masked_fill(~partners, -torch.inf)
        best, match = similar.max(-1)
        best = best.masked_fill(~(first & tokens.valid), -torch.inf)
        by_rank = rank.argsort(dim=1, stable=True)  # ties go to the one that stands first
        order = by_rank.gather(1, best.gather(1, by_rank).argsort(dim=1, descending=True, stable=True))
        place = torch.arange(order.shape[1], device=order.device).expand_as(order)
        gone = [now - count for now, count in zip(tokens.counts, counts, strict=True)]
        merging = place < torch.tensor(gone, device=order.device)[:, None]
        merging = torch.zeros_like(merging).scatter(1, order, merging)
        stays = tokens.valid & ~merging
        slot = stays.long().cumsum(1) - 1
        kept = (~stays).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts)]
        kept = kept.masked_fill(~stays.gather(1, kept), -1)
        owner = torch.where(merging, slot.gather(1, match), slot).masked_fill(~tokens.valid, -1)
        selection = Selection(kept, counts, owner=owner, weight=size)
        sizes = self._sizes(selection, size)
        self._after(tokens, selection, sizes, self._turns(tokens, stays & first, stays & ~first, best, rank))
        bias = sizes.clamp(min=1).log() if self.proportional else None
        return Selection(kept, counts, owner=owner, weight=size, bias=bias)

    def order(self, tokens: VisualTokens, selection: Selection) -> Tensor:
        """Slots of the kept tokens in the order that turns are counted by, [batch, kept]."""
        _, rank = tokens.memory[_MEMORY]
        kept = tokens.source.gather(1, selection.kept.clamp(min=0))
        turn: Tensor = rank.gather(1, kept.clamp(min=0))
        return turn.masked_fill(selection.kept < 0, 2**31 - 1).argsort(dim=1, stable=True)

    def _turns(self, tokens: VisualTokens, first: Tensor, second: Tensor, best: Tensor, rank: Tensor) -> Tensor:
        """Each token's new turn: what is left of the first set, then the second."""
        if tokens.prefix:
            order = torch.where(first, rank, torch.where(second, rank + first.shape[1], 2 * first.shape[1]))
            return order.argsort(dim=1, stable=True).argsort(dim=1)
        key = torch.where(first, -best.clamp(-2, 2), torch.where(second, 3.0, 4.0))
        by_rank = rank.argsort(dim=1, stable=True)
        order = by_rank.gather(1, key.gather(1, by_rank).argsort(dim=1, stable=True))
        return order.argsort(dim=1)

    def _before(self, tokens: VisualTokens) -> tuple[Tensor, Tensor]:
        """Sizes and turns of the tokens at hand."""
        found = tokens.memory.get(_MEMORY)
        index = tokens.source.clamp(min=0)
        if found is None:
            return torch.ones_like(index, dtype=torch.float32), index.masked_fill(~tokens.valid, 2**20)
        sizes, turns = found
        turn: Tensor = turns.gather(1, index).masked_fill(~tokens.valid, 2**20)
        return sizes.gather(1, index), turn.argsort(dim=1, stable=True).argsort(dim=1)

    def _after(self, tokens: VisualTokens, selection: Selection, sizes: Tensor, turns: Tensor) -> None:
        """Remember sizes and turns by original numbers."""
        most = max(tokens.total)
        kept = selection.kept.clamp(min=0)
        number = tokens.source.gather(1, kept).masked_fill(selection.kept < 0, most)
        whole = sizes.new_ones(len(sizes), most + 1)
        places = torch.zeros_like(whole, dtype=torch.long)
        tokens.memory[_MEMORY] = (
            whole.scatter(1, number, sizes)[:, :most],
            places.scatter(1, number, turns.gather(1, kept))[:, :most],
        )

    def _sizes(self, selection: Selection, size: Tensor) -> Tensor:
        """How many tokens each kept one stands for, [batch, kept]."""
        assert selection.owner is not None
        slots = selection.kept.shape[1]
        owner = torch.where(selection.owner >= 0, selection.owner, slots)
        return size.new_zeros(len(size), slots + 1).scatter_add(1, owner, size)[:, :slots]
