"""LLaVA-PruMerge: keep what [CLS] looks at by far the most, and add to it what is similar."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from prunekit.errors import BudgetError
from prunekit.keep import Keep
from prunekit.needs import Keys, Needs, Rows
from prunekit.plan import Method, Stage
from prunekit.policies._greedy import picked
from prunekit.policy import Products, PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["PruMerge"]

_NEAR = 32  # tokens that are added to each kept one


@dataclass(frozen=True)
class OutliersAndNeighbours(PruningPolicy):
    """Outliers of attention, each with its neighbours added, and one token for the rest; see `PruMerge`."""

    ratio: float | None = None
    plus: bool = False
    released: bool = False

    needs = Needs(Rows("cls", layer=-1, reduce="mean", joined=True), keys=Keys(-1, of_vision=True))
    needs_keep = False
    sites = ("connector",)

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        return self.released and self.ratio is None

    @property
    def waits(self) -> bool:  # type: ignore[override]
        """Where the outliers decide: without a share, and staged without `Keep`."""
        return self.ratio is None

    def planned(self, total: int) -> int | None:
        return None if self.ratio is None else min(total, int(total * self.ratio) + 1)

    def products(self, given: Products) -> int:
        return given.now**2 * given.features + given.now * given.kept * given.width

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        attention = tokens.attention["cls"].float().masked_fill(~tokens.valid, 0)
        counts, steps = self._counts(tokens, attention, keep)
        width = attention.shape[1]
        device = attention.device
        order = attention.masked_fill(~tokens.valid, -1).argsort(dim=1, descending=True, stable=True)
        place = torch.arange(width, device=device).expand_as(order)
        taken = place < torch.tensor(counts, device=device)[:, None]
        kept = torch.zeros_like(tokens.valid).scatter(1, order, taken)
        rank = torch.zeros_like(order).scatter(1, order, place)  # by falling attention
        if self.plus:
            step, there = (torch.tensor(each, device=device)[:, None] for each in (steps, tokens.counts))
            added = (place % step == 0) & (place < there - 1) & tokens.valid & ~kept
            kept, rank = kept | added, torch.where(added, width + place, rank)
            counts = kept.sum(1).tolist()
        rest = tokens.valid & ~kept
        spare = rank.masked_fill(~rest, 4 * width).argmin(1, keepdim=True)  # the best that goes lends its column
        some = rest.any(1, keepdim=True)
        stays = kept | torch.zeros_like(kept).scatter(1, spare, some)
        totals = tuple(min(count + 1, there) for count, there in zip(counts, tokens.counts, strict=True))
        mix = self._mix(tokens, attention)
        summed = (attention * rest)[:, None].expand(-1, 1, -1)
        mix = torch.where((place == spare)[..., None] & some[..., None], summed, mix)
        slots = (~stays).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(totals)]
        selection = picked(slots, totals, width)
        fed = selection.kept.clamp(min=0)
        if self.released:  # attention falling, strided tokens, the sum of the rest
            last = (place == spare) & some
            fed = torch.where(last, 2 * width, rank.masked_fill(~kept, 3 * width)).argsort(dim=1, stable=True)
            fed = fed[:, : max(totals)]
        return Selection(selection.kept, totals, mix=mix.gather(1, fed[..., None].expand(-1, -1, width)))

    def _counts(self, tokens: VisualTokens, attention: Tensor, keep: Keep | None) -> tuple[list[int], list[int]]:
        """Tokens that each row keeps by attention, and the steps between those added to them."""
        if keep is not None:
            return [max(1, count - 1) if count else 0 for count in tokens.budget(keep)], []
        if self.ratio is not None:
            return [int(count * self.ratio) for count in tokens.counts], []
        there = torch.tensor(tokens.counts, device=attention.device)[:, None]
        values, valid = attention, tokens.valid
        if self.released:
            values, valid, there = values.flatten()[None], valid.flatten()[None], there.sum(0, keepdim=True)
        ranked = values.masked_fill(~valid, torch.inf).sort(1).values
        low, high = (_quantile(ranked, there, share) for share in (0.25, 0.75))
        outliers = ((values > high + 1.5 * (high - low)) & valid).sum(1)
        # How many stay is the data's to say: one host read.
        found = [many / max(1, all_) for many, all_ in zip(outliers.tolist(), there[:, 0].tolist(), strict=True)]
        shares = found * (len(tokens.counts) if self.released else 1)
        counts = [int(count * share) for count, share in zip(tokens.counts, shares, strict=True)]
        return counts, [max(1, int(1 / share) // 3) if share else max(1, *tokens.counts) for share in shares]

    def _mix(self, tokens: VisualTokens, attention: Tensor) -> Tensor:
        """What each token would become, [batch, visual, visual]: itself, and its neighbours by their attention."""
        assert tokens.keys is not None
        keys = torch.nn.functional.normalize(rearrange(tokens.keys.float(), "b h n d -> b n (h d)"), dim=-1)
        itself = torch.eye(keys.shape[1], dtype=torch.bool, device=keys.device)
        similar = (keys @ keys.transpose(1, 2)).masked_fill(itself | ~tokens.valid[:, None], -torch.inf)
        near = similar.topk(min(_NEAR, max(1, similar.shape[1] - 1)), -1).indices
        mix = torch.zeros_like(similar).scatter(2, near, attention[:, None].expand_as(similar).gather(2, near))
        return mix.masked_fill(itself, 0) + itself


def _quantile(ranked: Tensor, count: Tensor, share: float) -> Tensor:
    """The quantile of the first `count` of rising values [rows, n], between neighbours linearly: [rows, 1]."""
    place = share * (count - 1).clamp(min=0)
    low = ranked.gather(1, place.floor().long())
    high = ranked.gather(1, place.ceil().long())
    return torch.where(low == high, low, low + (high - low) * (place - place.floor()))


@dataclass(frozen=True)
class PruMerge(Method):
    """LLaVA-PruMerge (Shang et al., ICCV 2025, arXiv 2403.15388): adaptive token reduction by merging.

    Between encoder and projector. `a` is the attention of [CLS] in the LAST encoder layer, of all heads as one:
    `softmax(q k / sqrt(d))` over their full width d. Tokens whose `a` is an outlier (above Q3 + 1.5 IQR) stay, and each
    becomes itself plus the sum of `a_j h_j` over the 32 others j with the nearest keys (cosine); weights are not
    normalised. One token more is the sum of `a_j h_j` over all that go. Authors' code:
    github.com/42Shawn/LLaVA-PruMerge.

    Args:
        keep: None lets the outliers decide; else visual tokens that stay, the sum of the rest among them: a share of
            the original ones (float) or a number (int).
        plus: PruMerge+, which also keeps every s-th token, `s = int(1 / share of outliers) / 3`; without `keep`.
        variant: `released` takes the outliers' share of all images of the batch together, keeps `int(share * n) + 1`
            for a share given as `keep`, and feeds tokens on by falling attention, the sum of the rest last; `paper`
            decides for each image and leaves tokens in their order.

    Differs from the reference: where everything stays there is no sum of the rest, which the released code adds as a
    vector of zeros; where more than a third are outliers PruMerge+ keeps all, where the released code fails.
    """

    keep: int | float | Keep | None = None
    plus: bool = False
    variant: Literal["paper", "released"] = "paper"

    positions = "compact"
    reference = Reference(
        name="LLaVA-PruMerge",
        arxiv="2403.15388",
        year=2025,
        authors="Shang et al.",
        venue="ICCV",
        code="https://github.com/42Shawn/LLaVA-PruMerge",
        commit="097c041",
        variants=("paper", "released"),
    )

    def __post_init__(self) -> None:
        if self.plus and self.keep is not None:
            raise BudgetError(f"PruMerge(plus=True, keep={self.keep!r}): PruMerge+ decides the number itself; no keep.")

    def stages(self, depth: int) -> tuple[Stage, ...]:
        released = self.variant == "released"
        keep = None if self.keep is None else Keep.of(self.keep)
        if released and keep is not None and keep.ratio is not None and keep == Keep(ratio=keep.ratio):
            return (Stage("connector", OutliersAndNeighbours(keep.ratio, released=True)),)
        return (Stage("connector", OutliersAndNeighbours(plus=self.plus, released=released), keep),)
