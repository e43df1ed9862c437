"""VisionZip: dominant tokens, and a few that sum up the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunekit.errors import BudgetError, NeedsError
from prunekit.keep import Keep
from prunekit.needs import Keys, Needs, Rows, States
from prunekit.plan import Method, Stage
from prunekit.policies._greedy import picked
from prunekit.policy import Products, PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["VisionZip"]

_CLS = States("hidden", of="cls")


@dataclass(frozen=True)
class DominantAndContextual(PruningPolicy):
    """Tokens with the most attention, and strided others to which the nearest are added; see `VisionZip`."""

    contextual: float = 10 / 64
    released: bool = False

    sites = ("connector",)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(Rows("cls", reduce="mean"), keys=Keys(of_vision=True), states=[_CLS] * self.released)

    def products(self, given: Products) -> int:
        mixed = given.kept * (given.now + self.released) * given.width
        return given.now**2 * given.head_dim + mixed

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        assert keep is not None
        counts, width = tokens.budget(keep), tokens.source.shape[1]
        device = tokens.source.device
        context = [min(count - 1, round(count * self.contextual)) if count > 1 else 0 for count in counts]
        patches = [count - many - self.released for count, many in zip(counts, context, strict=True)]
        attention = tokens.attention["cls"].float().masked_fill(~tokens.valid, -torch.inf)
        ranked = attention.argsort(dim=-1, descending=True, stable=True)
        place = torch.arange(width, device=device)
        first = place < torch.tensor(patches, device=device)[:, None]
        dominant = torch.zeros_like(tokens.valid).scatter(1, ranked, first)
        # The others in order, every step-th of which is a target.
        others = ~dominant & tokens.valid
        rest = [there - many for there, many in zip(tokens.counts, patches, strict=True)]
        steps = [max(1, left // max(1, many)) for left, many in zip(rest, context, strict=True)]
        number = others.long().cumsum(1) - 1
        step = torch.tensor(steps, device=device)[:, None]
        many = torch.tensor(context, device=device)[:, None]
        target = others & (number % step == 0) & (number < step * many)
        mix = self._mix(tokens, dominant, target, others & ~target)
        if not self.released:
            stays = dominant | target
            selection = picked((~stays).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts)], counts, width)
            mix = mix.gather(1, selection.kept.clamp(min=0)[..., None].expand(-1, -1, width))
            return Selection(selection.kept, counts, mix=mix)
        return self._with_cls(tokens, mix, dominant, target, ranked, counts)

    def _mix(self, tokens: VisualTokens, dominant: Tensor, target: Tensor, joining: Tensor) -> Tensor:
        """What each token becomes, [batch, visual, visual]: targets are themselves plus the mean of what joins them."""
        assert tokens.keys is not None
        keys = torch.nn.functional.normalize(tokens.keys.float().mean(1), dim=-1)
        similar = (keys @ keys.transpose(1, 2)).masked_fill(~target[:, None], -torch.inf)
        nearest = similar.argmax(-1)  # of each token, among the targets
        joins = torch.zeros_like(similar).scatter(1, nearest[:, None], joining[:, None].float())
        joins = joins * target.any(1)[:, None, None]
        return torch.eye(similar.shape[1], device=similar.device) + joins / joins.sum(-1, keepdim=True).clamp(min=1)

    def _with_cls(
        self,
        tokens: VisualTokens,
        mix: Tensor,
        dominant: Tensor,
        target: Tensor,
        ranked: Tensor,
        counts: tuple[int, ...],
    ) -> Selection:
        """[CLS], dominant tokens and targets, fed on in this order; [CLS] takes the place of the next in attention."""
        width = ranked.shape[1]
        stays = dominant | target
        after = (~stays.gather(1, ranked)).to(torch.uint8).argmax(1, keepdim=True)  # the best that goes
        spare = ranked.gather(1, after)
        columns = stays.scatter(1, spare, True)
        place = (~columns).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts)]
        kept = picked(place, counts, width).kept
        rank = torch.where(dominant, 1, torch.where(target, 2, 3)).scatter(1, spare, 0)
        order = rank.argsort(dim=1, stable=True)[:, : max(counts)]  # tokens in the order of feeding
        whole = torch.cat([mix, mix.new_zeros(*mix.shape[:2], 1)], -1)
        cls = torch.nn.functional.one_hot(torch.full_like(spare, width), width + 1).to(mix.dtype)
        whole = whole.scatter(1, spare[..., None].expand(-1, -1, width + 1), cls)
        mix = whole.gather(1, order[..., None].expand(-1, -1, width + 1))
        cls_state = tokens.states[_CLS]
        if cls_state.shape[-1] != tokens.hidden.shape[-1]:
            raise NeedsError(
                f"VisionZip(variant='released') feeds on [CLS] as one of the tokens, but those of this model are"
                f" {tokens.hidden.shape[-1]} wide before the projector, several states in one, and [CLS] is"
                f" {cls_state.shape[-1]}; use variant='paper'."
            )
        return Selection(kept, counts, mix=mix, extra=cls_state)


@dataclass(frozen=True)
class VisionZip(Method):
    """VisionZip (Yang et al., CVPR 2025, arXiv 2412.04467): longer is better but not necessary.

    Between encoder and projector. *Dominant* tokens are those with the most [CLS] attention in the layer that produces
    the features (LLaVA-1.5: 22 of 24). Of the rest, in order, every s-th becomes a *contextual* token, `s = rest //
    contextual`; each other one joins the contextual token with the nearest key (cosine, heads averaged), which becomes
    itself plus the mean of those that joined. Authors' code: github.com/dvlab-research/VisionZip.

    Args:
        keep: visual tokens that stay, contextual ones included: a share of the original ones (float) or a number (int).
        contextual: share of them that is contextual: 10 of 64, 20 of 128 and 30 of 192 as published.
        variant: `released` feeds on [CLS] as one of the dominant tokens, as the authors' code does, then dominant and
            contextual tokens; `paper` takes patches only and leaves all in their order.

    Differs from the reference: heads are averaged instead of summed, which ranks alike.
    """

    keep: int | float | Keep = 64
    contextual: float = 10 / 64
    variant: Literal["paper", "released"] = "paper"

    positions = "compact"
    reference = Reference(
        name="VisionZip",
        arxiv="2412.04467",
        year=2025,
        authors="Yang et al.",
        venue="CVPR",
        code="https://github.com/dvlab-research/VisionZip",
        licence="Apache-2.0",
        commit="3151f6d",
        variants=("paper", "released"),
    )

    def __post_init__(self) -> None:
        if not 0 <= self.contextual < 1:
            raise BudgetError(f"VisionZip(contextual={self.contextual}): must be at least 0 and below 1.")

    def stages(self, depth: int) -> tuple[Stage, ...]:
        policy = DominantAndContextual(self.contextual, released=self.variant == "released")
        return (Stage("connector", policy, Keep.of(self.keep)),)
