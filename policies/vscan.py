"""VScan: a global and a local look at the image, then the text's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool
from torch import Tensor

from prunekit.errors import PolicyError, nearest
from prunekit.keep import Keep
from prunekit.needs import Needs, Rows
from prunekit.plan import Method, Shape, Stage
from prunekit.policies._greedy import picked, rank_within
from prunekit.policies.cross_attention import CrossAttention
from prunekit.policy import Products, PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["VScan"]

_WINDOW = 6  # tokens along the edge of a window
_VARIANTS = ("paper", "released")


@dataclass(frozen=True)
class GlobalAndLocal(PruningPolicy):
    """Half of the tokens by a shallow layer inside windows, half by the deep one everywhere; see `VScan`."""

    shallow: int = 5
    keep: Keep | None = None

    sites = ("input",)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs([Rows("cls", self.shallow, reduce="mean"), Rows("cls", reduce="mean")])

    @property
    def needs_keep(self) -> bool:  # type: ignore[override]
        return self.keep is None

    def products(self, given: Products) -> int:
        return given.now * given.kept * given.width if given.kept < given.now else 0

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        counts = tokens.budget(keep or self.keep or Keep(ratio=1.0))
        local, deep = self.local(tokens, keep), tokens.attention[self.needs.attention[1]].float()
        ranking = torch.where(local, 2.0, deep).masked_fill(~tokens.valid, -1)
        if self.keep is not None:  # as released: what the division leaves over is lost
            shares = zip(counts, self._windows(tokens)[1], strict=True)
            counts = tuple(count - count // 2 + count // 2 // many * many for count, many in shares)
        order = ranking.argsort(dim=1, descending=True, stable=True)[:, : max(counts)]
        selection = picked(order, counts, ranking.shape[1])
        if counts == tokens.counts:
            return selection
        return replace(selection, owner=self._owner(tokens, selection.kept))

    def local(self, tokens: VisualTokens, keep: Keep | None = None) -> Bool[Tensor, "batch visual"]:
        """Which tokens the shallow layer chooses inside its windows."""
        window, many = self._windows(tokens)
        counts = tokens.budget(keep or self.keep or Keep(ratio=1.0))
        quota = [count // 2 // windows for count, windows in zip(counts, many, strict=True)]
        shallow = tokens.attention[self.needs.attention[0]].float()
        rank = rank_within(window, shallow.masked_fill(~tokens.valid, -1))
        return (rank < torch.tensor(quota, device=rank.device)[:, None]) & tokens.valid

    def _windows(self, tokens: VisualTokens) -> tuple[Tensor, list[int]]:
        """The window of each token, and how many each row has; runs of as many tokens where there is no grid."""
        source = tokens.source.clamp(min=0)
        if tokens.grid is None or not tokens.per_image:
            size = _WINDOW**2
            return source // size, [max(1, -(-total // size)) for total in tokens.total]
        height, width = tokens.grid
        place, across = source % (height * width), -(-width // _WINDOW)
        of_image = across * -(-height // _WINDOW)
        line, column = place // width // _WINDOW, place % width // _WINDOW
        images = [max(1, total // (height * width)) for total in tokens.total]
        return source // (height * width) * of_image + line * across + column, [n * of_image for n in images]

    def _owner(self, tokens: VisualTokens, kept: Tensor) -> Tensor:
        """Each token's nearest kept one (cosine of the states at the site), itself if it is kept."""
        unit = torch.nn.functional.normalize(tokens.hidden.float(), dim=-1)
        index = kept.clamp(min=0)
        own = unit.gather(1, index[..., None].expand(-1, -1, unit.shape[-1]))
        similar = (unit @ own.transpose(1, 2)).masked_fill((kept < 0)[:, None], -torch.inf)
        slot = torch.arange(kept.shape[1], device=kept.device).expand_as(kept)
        width = unit.shape[1]
        owner = torch.nn.functional.pad(similar.argmax(-1), (0, 1))  # the last column takes what is unused
        owner = owner.scatter(1, torch.where(kept >= 0, kept, width), slot)[:, :width]
        return owner.masked_fill(~tokens.valid, -1)


@dataclass(frozen=True)
class VScan(Method):
    """VScan (Zhang et al., TMLR 2026, arXiv 2505.22654): two scans of the image and a look from the middle layers.

    Stage 1, after the encoder: half of the tokens are those with the most [CLS] attention in a shallow layer (5 of 24)
    inside each window of 6 x 6 tokens, equally many a window; the others those with the most in the layer that produces
    the features. Every token that goes is averaged into the nearest kept one (cosine of the projected states). Stage 2,
    before the middle of the language model (16 of 32), keeps what the last token attends to most in the layer to come.
    Authors' code: github.com/Tencent/SelfEvolvingAgent, folder VScan.

    Args:
        keep: visual tokens after stage 2: a share of the original ones (float) or a number (int).
        visual_keep: the same after stage 1; by default three times `keep`, and no more than all: 96 and 32 for an
            average of 64 over the layers, as published.
        variant: of stage 1: `released` rounds the local half down to a multiple of the windows and loses the rest (100
            becomes 98); `paper` gives it to the global half.

    Differs from the reference: where tokens form no grid of equal images, windows are runs of 36 tokens.
    """

    keep: int | float | Keep = 32
    visual_keep: int | float | Keep | None = None
    variant: Literal["paper", "released"] = "paper"

    positions = "compact"
    reference = Reference(
        name="VScan",
        arxiv="2505.22654",
        year=2026,
        authors="Zhang et al.",
        venue="TMLR",
        code="https://github.com/Tencent/SelfEvolvingAgent",
        commit="a82450e",
        variants=("paper", "released"),
    )

    def __post_init__(self) -> None:
        if self.variant not in _VARIANTS:
            hint = nearest(str(self.variant), _VARIANTS)
            raise PolicyError(f"VScan(variant={self.variant!r}): allowed are {', '.join(_VARIANTS)}.{hint}")
        self._first(Keep.of(self.keep))  # refuses what is no budget

    def stages_of(self, shape: Shape) -> tuple[Stage, ...]:
        last = Keep.of(self.keep)
        shallow = min(max(0, shape.features - 1), round(5 / 24 * shape.encoder))
        first = self._first(last)
        stage = Stage("input", GlobalAndLocal(shallow), first)
        if self.variant == "released":
            stage = Stage("input", GlobalAndLocal(shallow, keep=first))
        return stage, Stage(f"decoder.{max(1, shape.depth // 2)}", CrossAttention("last", ahead=True), last)

    def _first(self, last: Keep) -> Keep:
        if self.visual_keep is not None:
            return Keep.of(self.visual_keep)
        return replace(last, times=3 * last.times)
