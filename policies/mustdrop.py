"""MustDrop: merge what is alike in the encoder, mark what must stay, and drop what the text does not need."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Int
from torch import Tensor

from prunekit.errors import BudgetError, UnsupportedInputError
from prunekit.keep import Keep
from prunekit.needs import Needs, Rows
from prunekit.plan import Method, Stage
from prunekit.policies._greedy import picked
from prunekit.policy import Products, PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["MustDrop"]

_SIDE = 3  # of a window that is merged
_SHARE = 0.08  # of the tokens that must stay
_KEYS = "MustDrop keys"
_THRESHOLDS = {192: (0.001, 0.001), 128: (0.0012, 0.001), 64: (0.011, 0.01)}  # of all text, of one token


@dataclass(frozen=True)
class WindowMerging(PruningPolicy):
    """Merge windows of tokens that are alike; see `MustDrop`."""

    threshold: float = 0.8
    released: bool = False

    needs_keep = False
    sites = ("vision",)
    waits = True

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        return self.released

    def products(self, given: Products) -> int:
        return given.now // _SIDE**2 * _SIDE**4 * given.width

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        if tokens.grid is None or min(tokens.counts) != tokens.grid[0] * tokens.grid[1]:
            raise UnsupportedInputError("MustDrop merges windows of a grid of patches, which these images have not.")
        window, many = self._windows(*tokens.grid, tokens.source.device)
        batch, width = tokens.source.shape
        members = torch.argsort(window, stable=True)[: many * _SIDE**2].view(many, _SIDE**2)
        unit = torch.nn.functional.normalize(tokens.hidden.float(), dim=-1)[:, members]  # [batch, windows, 9, dim]
        pairs = (unit @ unit.transpose(2, 3)).sum((2, 3)) - unit.square().sum((2, 3))
        alike = pairs / (_SIDE**2 * (_SIDE**2 - 1))
        merging = (alike >= self.threshold).sum(1)
        merging = merging.amin(0).expand(batch) if self.released else merging
        found = merging.tolist()  # how many are alike is the data's to say: one host read
        order = alike.argsort(dim=1, descending=True, stable=True)
        rank = torch.zeros_like(order).scatter(1, order, torch.arange(many, device=order.device).expand_as(order))
        merged = rank < merging[:, None]  # [batch, windows]
        inside = torch.nn.functional.pad(merged, (0, 1))[:, window]  # by token; the last stands for no window
        first = torch.zeros(width + 1, dtype=torch.long, device=window.device)
        first = first.scatter(0, members.flatten(), members[:, :1].expand_as(members).flatten())[:width]
        place = torch.arange(width, device=window.device)
        stays = ~inside | (first == place)
        counts = tuple(width - (_SIDE**2 - 1) * count for count in found)
        selection = picked((~stays).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts)], counts, width)
        slot = stays.long().cumsum(1) - 1
        owner = torch.where(inside, slot.gather(1, first.expand(batch, -1)), slot)
        whole = Selection(selection.kept, counts, owner=owner)
        if not self.released:
            return whole
        feed = torch.where(inside, torch.nn.functional.pad(rank, (0, 1))[:, window], many + place)
        kept = selection.kept.clamp(min=0)
        turn = feed.gather(1, kept).masked_fill(selection.kept < 0, 2 * width).argsort(dim=1, stable=True)
        return whole.in_order(turn.masked_fill(selection.kept < 0, -1), width)

    def _windows(self, height: int, width: int, device: torch.device) -> tuple[Tensor, int]:
        """The window of each token, and how many there are; tokens beyond the last whole window have that number."""
        line, column = torch.arange(height, device=device)[:, None], torch.arange(width, device=device)
        across, down = width // _SIDE, height // _SIDE
        window = line // _SIDE * across + column // _SIDE
        outside = (line >= down * _SIDE) | (column >= across * _SIDE)
        return window.masked_fill(outside, across * down).flatten(), across * down


@dataclass(frozen=True)
class KeySet(PruningPolicy):
    """Keeps everything, and marks the tokens that must stay; see `MustDrop`."""

    needs = Needs(Rows("cls", layer=-1, reduce="mean"))
    needs_keep = False  # how many there are is the data's to say: windows were merged before
    sites = ("input",)

    def chosen(self, tokens: VisualTokens) -> Int[Tensor, "batch keys"]:
        """Tokens that must stay, most attention first, -1 at the right."""
        many = [math.ceil(_SHARE * count) for count in tokens.counts]
        seen = tokens.attention["cls"].float().masked_fill(~tokens.valid, -1)
        found = seen.argsort(dim=1, descending=True, stable=True)[:, : max(many)]
        place = torch.arange(found.shape[1], device=found.device)
        return found.masked_fill(place >= torch.tensor(many, device=found.device)[:, None], -1)

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        found = self.chosen(tokens)
        numbers = tokens.source.gather(1, found.clamp(min=0)).masked_fill(found < 0, -2)
        tokens.memory[_KEYS] = numbers
        return Selection.everything(tokens)


@dataclass(frozen=True)
class DualAttention(PruningPolicy):
    """Drop what neither the text as a whole nor any of its tokens attends to; see `MustDrop`."""

    of_all: float = 0.001
    of_one: float = 0.001

    needs = Needs(Rows("text"))
    needs_keep = False
    sites = ("decoder",)
    waits = True

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        seen = tokens.attention["text"].float().mean(1)  # [batch, text, visual]
        total, most = seen.sum(1), seen.amax(1)
        all_ = (total * tokens.valid).sum(1, keepdim=True)
        keys = tokens.memory.get(_KEYS)
        must = torch.zeros_like(tokens.valid)
        if isinstance(keys, Tensor):
            must = (tokens.source[..., None] == keys.to(must.device)[:, None]).any(-1)
        stays = tokens.valid & ((total >= self.of_all * all_) | (most >= self.of_one) | must)
        counts = tuple(stays.sum(1).tolist())  # the data's to say: one host read
        width = stays.shape[1]
        return picked((~stays).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts)], counts, width)


@dataclass(frozen=True)
class MustDrop(Method):
    """MustDrop (Liu et al., arXiv 2411.10803): importance over the whole life of a visual token.

    Behind the first encoder layer, windows of 3 x 3 patches whose mean cosine is at least 0.8 become one, their mean.
    Before the language model, the 8 % with the most [CLS] attention in the last encoder layer are marked: they stay for
    good. Behind decoder layers 2, 6, 10 and 14 (of 32), an unmarked token goes if the text after the image gives it
    less than `of_all` of what it gives to all tokens, AND no text token gives it `of_one`. Authors' code:
    github.com/liuting20/MustDrop.

    Args:
        retain: published setting of LLaVA-1.5, which stands for two thresholds: 192, 128 or 64.
        of_all: the first threshold, instead of the setting's.
        of_one: the second.
        variant: of the merging: `released` merges as many windows of every image of a batch as of the one with the
            fewest, and feeds merged windows on first; `paper` decides for each image.

    Differs from the reference: patches beyond the last whole window are not merged, where the released code knows grids
    that 3 divides. The KV cache is not pruned again while decoding.
    """

    retain: int = 192
    of_all: float | None = None
    of_one: float | None = None
    variant: Literal["paper", "released"] = "paper"

    positions = "compact"
    reference = Reference(
        name="MustDrop",
        arxiv="2411.10803",
        year=2024,
        authors="Liu et al.",
        code="https://github.com/liuting20/MustDrop",
        commit="909afa5",
        variants=("paper", "released"),
    )

    def __post_init__(self) -> None:
        if self.retain not in _THRESHOLDS and (self.of_all is None or self.of_one is None):
            near = min(_THRESHOLDS, key=lambda budget: abs(budget - self.retain))
            raise BudgetError(
                f"MustDrop(retain={self.retain}): published are {', '.join(map(str, _THRESHOLDS))}; the nearest is"
                f" {near}. Give of_all and of_one for anything else: they decide how many stay."
            )

    def stages(self, depth: int) -> tuple[Stage, ...]:
        of_all, of_one = _THRESHOLDS.get(self.retain, (0.0, 0.0))
        dual = DualAttention(
            of_all if self.of_all is None else self.of_all, of_one if self.of_one is None else self.of_one
        )
        layers = sorted({min(depth - 1, max(1, round(layer * depth / 32))) for layer in (3, 7, 11, 15)})
        return (
            Stage("vision.0", WindowMerging(released=self.variant == "released")),
            Stage("input", KeySet()),
            *(Stage(f"decoder.{layer}", dual) for layer in layers),
        )
