"""HoloV: prune before the language model, crop by crop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from prunekit.errors import PolicyError
from prunekit.keep import Keep
from prunekit.needs import Needs, Rows
from prunekit.plan import Method, Stage
from prunekit.policy import Products, PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["HoloV"]

_TINY = 1e-6


@dataclass(frozen=True)
class HolisticCrops(PruningPolicy):
    """Spend the budget over runs of tokens by what they show, so that no part of the image is lost; see `HoloV`."""

    crops: int = 16
    alpha: float = 0.09
    released: bool = False

    needs = Needs(Rows("cls", reduce="mean"))
    sites = ("input",)

    def __post_init__(self) -> None:
        if self.crops < 1:
            raise PolicyError(f"HoloV(crops={self.crops}): must be at least 1.")

    def products(self, given: Products) -> int:
        return self.crops * (-(-given.now // self.crops)) ** 2 * given.width

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        assert keep is not None
        counts = tokens.budget(keep)
        attention = 1000 * tokens.attention["cls"].float()
        crop, place, size = self._crops(tokens)
        score = self._score(tokens, attention, crop, place, size)  # of tokens, [batch, visual]
        sums = score.new_zeros(len(score), self.crops).scatter_add(1, crop, score.masked_fill(~tokens.valid, 0))
        crop_score = sums / size.clamp(min=1)
        quota = self._quota(crop_score, size, torch.tensor(counts, device=score.device))
        ranking = attention if self.released else score
        whole = (quota >= size).gather(1, crop) if self.released else torch.zeros_like(tokens.valid)
        ranking = torch.where(whole, -place.float(), ranking)  # crops that are kept whole stay in order
        order = ranking.masked_fill(~tokens.valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
        order = order.gather(
            1, crop.masked_fill(~tokens.valid, self.crops).gather(1, order).argsort(dim=1, stable=True)
        )
        number = crop.gather(1, order)  # by crop, best first
        start = size.cumsum(1) - size
        rank = torch.arange(order.shape[1], device=order.device) - start.gather(1, number)
        stays = (rank < quota.gather(1, number)) & tokens.valid.gather(1, order)
        return self._selection(order, stays, counts)

    def _crops(self, tokens: VisualTokens) -> tuple[Tensor, Tensor, Tensor]:
        """Number of each token's crop, its place in it, and sizes of crops [batch, crops]: runs, longer ones first."""
        total = torch.tensor(tokens.counts, device=tokens.source.device)[:, None]
        each, longer = total // self.crops, total % self.crops
        place = torch.arange(tokens.source.shape[1], device=total.device).expand(len(total), -1)
        within = longer * (each + 1)
        crop = torch.where(place < within, place // (each + 1), longer + (place - within) // each.clamp(min=1))
        crop = crop.clamp(max=self.crops - 1)
        size = each + (torch.arange(self.crops, device=total.device) < longer)
        return crop, place - (size.cumsum(1) - size).gather(1, crop), size

    def _score(self, tokens: VisualTokens, attention: Tensor, crop: Tensor, place: Tensor, size: Tensor) -> Tensor:
        """Attention plus the variance of a token's cosines within its crop, brought to the size of attention."""
        widest = -(-max(tokens.counts) // self.crops)
        slots = self.crops * widest
        slot = (crop * widest + place.clamp(max=widest - 1)).masked_fill(~tokens.valid, slots)
        states = tokens.hidden.float()
        unit = states / (states.norm(dim=-1, keepdim=True) + _TINY)
        table = unit.new_zeros(len(unit), slots + 1, unit.shape[-1])
        table = table.scatter(1, slot[..., None].expand_as(unit), unit)[:, :slots]
        table = table.unflatten(1, (self.crops, widest))
        cosine = table @ table.transpose(2, 3)  # [batch, crops, widest, widest]
        cosine = cosine * ~torch.eye(widest, dtype=torch.bool, device=cosine.device)
        inside = torch.arange(widest, device=size.device) < size[..., None]  # [batch, crops, widest]
        others = (size - 1).clamp(min=1)[..., None]
        mean = cosine.sum(-1) / others
        spread = ((cosine - mean[..., None]).square() * inside[:, :, None]).sum(-1) / others
        table_of = torch.nn.functional.pad((spread * inside).flatten(1), (0, 1))
        variance = table_of.gather(1, slot)
        full = torch.nn.functional.pad(attention.abs() * tokens.valid, (0, 1))[:, :-1]
        crop_mean = self._mean(full, crop, size, tokens.valid)
        scale = crop_mean / (self._mean(variance.abs(), crop, size, tokens.valid) + _TINY)
        return attention + self.alpha * variance * scale

    def _mean(self, values: Tensor, crop: Tensor, size: Tensor, valid: Tensor) -> Tensor:
        """The mean of each token's crop, [batch, visual]."""
        sums = values.new_zeros(len(values), self.crops).scatter_add(1, crop, values * valid)
        return (sums / size.clamp(min=1)).gather(1, crop)

    def _quota(self, score: Tensor, size: Tensor, counts: Tensor) -> Tensor:
        """Tokens of each crop, [batch, crops]."""
        share = score / (score.sum(1, keepdim=True) + _TINY)
        quota = (counts[:, None] * share).floor().long()
        order = score.argsort(dim=1, descending=True, stable=True)
        rank = order.argsort(1)
        quota = quota + (rank < (counts - quota.sum(1))[:, None])
        if self.released:
            return quota
        # What a crop cannot hold goes to the others, best crop first: water filling in as many rounds as crops.
        for _ in range(self.crops):
            quota = quota.minimum(size)
            left = (counts - quota.sum(1))[:, None]
            room = (size - quota).gather(1, order)
            given = (left - (room.cumsum(1) - room)).clamp(min=0).minimum(room)
            quota = quota.scatter_add(1, order, given)
        return quota

    def _selection(self, order: Tensor, stays: Tensor, counts: tuple[int, ...]) -> Selection:
        """Kept tokens in the order of the image, or as the released code feeds them on.

        Args:
            order: tokens crop by crop, best first, [batch, visual]; `stays` says which of them are kept.
        """
        width = order.shape[1]
        kept = torch.zeros_like(stays).scatter(1, order, stays)  # by token
        rank = (~kept).to(torch.uint8).argsort(dim=1, stable=True)  # kept ones, then those whose places stand in
        selection = _first(rank, counts, width)
        if not self.released:
            return selection
        fed = stays.long().cumsum(1) - 1  # place in which each is fed on
        owner = torch.zeros_like(order).scatter(1, order, fed.masked_fill(~stays, -1))
        return replace(selection, owner=owner)


def _first(rank: Tensor, counts: tuple[int, ...], width: int) -> Selection:
    """The first `counts` of ranked tokens, ascending."""
    surplus = torch.arange(max(counts), device=rank.device) >= torch.tensor(counts, device=rank.device)[:, None]
    kept = rank[:, : max(counts)].masked_fill(surplus, width).sort(1).values
    return Selection(kept.masked_fill(kept == width, -1), counts)


@dataclass(frozen=True)
class HoloV(Method):
    """HoloV (NeurIPS 2025, arXiv 2510.02912): holistic visual context, spread over crops.

    The tokens of a sample are cut into runs (crops). A crop's score is the mean over its tokens of
    `1000 a_i + alpha v_i s`: `a` the attention of [CLS] in the layer that produces the features, `v_i` the variance of
    token i's cosines to the tokens of its crop (projected states), `s` what brings `v` to the size of `a` in the crop.
    Crops have shares of the budget in proportion to their scores, and spend them on their best tokens. Authors' code:
    github.com/obananas/HoloV.

    Args:
        keep: visual tokens that stay: a share of the original ones (float) or a number (int).
        crops: number of runs.
        alpha: weight of the variance.
        variant: `paper` ranks the tokens of a crop by the joint score, gives what a crop cannot hold to the next best
            ones, and leaves tokens in their order. `released` does what the authors' code does: it ranks by attention
            alone, feeds tokens on crop by crop in that order, and loses what a crop cannot hold: as many vectors at the
            end are zero.

    Differs from the reference: how the paper spends what a crop cannot hold is ours. Its re-fetching of visual context
    in a middle layer is not part of the released code and not of this.
    """

    keep: int | float | Keep = 64
    crops: int = 16
    alpha: float = 0.09
    variant: Literal["paper", "released"] = "paper"

    positions = "compact"
    reference = Reference(
        name="HoloV",
        arxiv="2510.02912",
        year=2025,
        venue="NeurIPS",
        code="https://github.com/obananas/HoloV",
        commit="1d2e65e",
        variants=("paper", "released"),
    )

    def stages(self, depth: int) -> tuple[Stage, ...]:
        policy = HolisticCrops(self.crops, self.alpha, released=self.variant == "released")
        return (Stage("input", policy, Keep.of(self.keep)),)
