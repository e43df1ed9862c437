"""SparseVLM: let the words that concern the image rate its tokens, layer by layer."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from prunekit.errors import BudgetError, nearest
from prunekit.keep import Keep
from prunekit.needs import Needs, Rows, States
from prunekit.plan import Method, Stage
from prunekit.policies._clusters import density_peaks
from prunekit.policies._greedy import picked
from prunekit.policy import Products, PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["SparseVLM"]

_ALL = 576  # visual tokens of LLaVA-1.5, to which the published lists refer
_LISTS = {
    "v1": {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)},
    "plus": {192: (300, 200, 118), 128: (238, 108, 60), 96: (246, 54, 28), 64: (66, 34, 20)},
}
_HEADS, _HEAD_DIM = 14, 128
_VISUAL, _TEXT = States("embedding"), States("embedding", of="text")
_MEMORY = "SparseVLM raters"


@dataclass(frozen=True)
class RatedTokens(PruningPolicy):
    """One stage of `SparseVLM`: keep what the raters attend to, and recycle the best of the rest.

    Args:
        levels: what this stage and those before it keep, the recycled ones apart.
        version: `v1` or `plus`.
    """

    levels: tuple[Keep, ...]
    version: Literal["v1", "plus"] = "v1"

    needs_keep = False
    sites = ("decoder",)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(Rows("text"), text=True, states=(_VISUAL, _TEXT))

    def planned(self, total: int) -> int | None:
        now = total
        for level in self.levels:
            kept, _, groups = self._sizes(now, min(level.count(total), total))
            now = kept + groups
        return now

    def raters(self, tokens: VisualTokens) -> Bool[Tensor, "batch text"]:
        """Text tokens that rate: those of the question that visual tokens resemble more than the average one.

        Found once for a prompt, from what enters the language model.
        """
        if _MEMORY not in tokens.memory:
            assert tokens.question is not None
            logits = tokens.states[_VISUAL].float() @ tokens.states[_TEXT].float().transpose(1, 2)
            shares = logits.masked_fill(~tokens.question[:, None], torch.finfo(logits.dtype).min).softmax(-1)
            there = tokens.valid.sum(1, keepdim=True).clamp(min=1)
            mean = (shares * tokens.valid[..., None]).sum(1) / there * tokens.question
            average = mean.sum(1, keepdim=True) / tokens.question.sum(1, keepdim=True).clamp(min=1)
            # with one word, or all alike, nobody is above the average: all rate
            above = (mean > average) & tokens.question
            tokens.memory[_MEMORY] = torch.where(above.any(1, keepdim=True), above, tokens.question)
        found = tokens.memory[_MEMORY]
        assert isinstance(found, Tensor)
        return found

    def products(self, given: Products) -> int:
        first = len(self.levels) == 1  # raters are found once
        return given.now * given.text * given.width if first else 0

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        scores = self._scores(tokens)
        level = self.levels[-1]
        sizes = [
            self._sizes(now, min(level.count(total), total))
            for now, total in zip(tokens.counts, tokens.total, strict=True)
        ]
        width, device = scores.shape[1], scores.device
        order = scores.masked_fill(~tokens.valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
        kept_counts = tuple(kept for kept, _, _ in sizes)
        plain = picked(order[:, : max(kept_counts)], kept_counts, width)
        if not any(groups for _, _, groups in sizes):
            return replace(plain, scores=scores)
        kept, recycled, groups = (torch.tensor(each, device=device)[:, None] for each in zip(*sizes, strict=True))
        place = torch.arange(width, device=device)
        some = order.gather(1, (kept + place[: int(max(r for _, r, _ in sizes))]).clamp(max=width - 1))
        states = tokens.hidden.gather(1, some[..., None].expand(-1, -1, tokens.hidden.shape[-1]))
        centres, group = density_peaks(states, [r for _, r, _ in sizes], [max(1, g) for _, _, g in sizes])
        group = group.masked_fill((groups == 0) | (place[: some.shape[1]] >= recycled), -1)
        # Fed on: the kept in order, then the clusters, best centre first.
        spare = width  # takes what is unused
        rank = plain.kept.masked_fill(plain.kept < 0, spare)
        owner = torch.full((len(rank), width + 1), -1, device=device)
        owner = owner.scatter(1, rank, torch.arange(rank.shape[1], device=device).expand_as(rank))
        owner = owner.scatter(1, torch.where(group >= 0, some, spare), kept + group)[:, :width]
        real = (centres >= 0) & (torch.arange(centres.shape[1], device=device) < groups)
        heads = torch.where(real, some.gather(1, centres.clamp(min=0)), spare)
        stays = torch.zeros(len(rank), width + 1, dtype=torch.bool, device=device)
        stays = stays.scatter(1, torch.cat([rank, heads], 1), True)[:, :width]
        counts = tuple(kept + groups for kept, _, groups in sizes)
        slots = picked((~stays).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts)], counts, width)
        return replace(slots, owner=owner, scores=scores)

    def _sizes(self, now: int, wanted: int) -> tuple[int, int, int]:
        """Of `now` tokens: how many are kept, recycled, and into how many groups."""
        kept = min(wanted, max(now - 1, 0)) if now > 1 else now
        gone = now - kept
        if self.version == "plus" or not gone:
            return kept, 0, 0
        recycled = min(gone, int(gone * 0.3) + 1)
        return kept, recycled, min(recycled, recycled // 10 + 1)

    def _scores(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        assert tokens.text_valid is not None
        attention = tokens.attention[self.needs.attention[0]].float()  # the last rows of the text, [b, h, rows, n]
        raters = self.raters(tokens)
        rows = torch.arange(attention.shape[2], device=attention.device)
        word = rows + tokens.text_valid.sum(1, keepdim=True) - len(rows)  # of each row
        rating = raters.gather(1, word.clamp(min=0)) & (word >= 0)
        if self.version == "plus":
            attention = attention / self._closeness(tokens, word)[:, None]
        attention = attention * rating[:, None, :, None] * tokens.valid[:, None, None]
        if self.version == "plus":
            heads = attention.sum((2, 3)).topk(min(_HEADS, attention.shape[1]), 1).indices
            attention = attention.gather(1, heads[..., None, None].expand(-1, -1, *attention.shape[2:]))
        return attention.sum(2).mean(1) / rating.sum(1, keepdim=True).clamp(min=1)

    def _closeness(self, tokens: VisualTokens, word: Tensor) -> Tensor:
        """What rotary embedding makes of two vectors of ones, by their distance: [batch, rows, visual]."""
        assert tokens.text_positions is not None
        assert tokens.positions is not None
        apart = tokens.text_positions.gather(1, word.clamp(min=0))[..., None] - tokens.positions[:, None]
        half = _HEAD_DIM // 2
        theta = torch.exp(torch.arange(half, device=apart.device).double() * (-math.log(10000.0) / half))
        total: Tensor = apart.new_zeros(apart.shape, dtype=torch.float32)
        for angle in theta.split(16):  # chunks bound the memory
            total = total + torch.cos(apart[..., None] * angle).sum(-1).float()
        weight: Tensor = 2 * total / _HEAD_DIM**0.5
        return weight


@dataclass(frozen=True)
class SparseVLM(Method):
    """SparseVLM (Zhang et al., ICML 2025, arXiv 2410.04417): visual token sparsification, guided by text.

    Raters are the question's tokens to which the visual embeddings give more than the average of `softmax(v t)`. After
    decoder layers 2, 6 and 15 (of 32), keep the visual tokens to which raters attend most, averaged over heads.
    `v1` recycles the best 30 % (and one) of those that go: they are clustered by density peaks into a tenth as many
    (and one) groups, whose means follow the kept tokens. `plus` recycles none, takes the 14 heads with the most
    attention to the image, and divides attention by what rotary embedding makes of its distance. Authors' code:
    github.com/Gumpest/SparseVLMs.

    Args:
        retain: published setting, the average over the layers of LLaVA-1.5: 192, 128, 96 or 64, whose lists are scaled
            to images with other numbers of tokens. Ignored where `keep` is given.
        keep: visual tokens after the last stage, the recycled ones apart: a share of the original ones (float) or a
            number (int). Earlier stages keep as many times more as in the list of `retain=192`: ours.
        version: `v1` or `plus`.

    Differs from the reference: the paper derives the numbers from the rank of the attention matrix, its code has lists.
    `v1` numbers tokens anew and `plus` does not; give `positions="published"` for that. The released code adds noise of
    1e-6 to densities. Where no word is above the average all of them rate.
    """

    retain: int = 192
    keep: int | float | Keep | None = None
    version: Literal["v1", "plus"] = "v1"

    reference = Reference(
        name="SparseVLM",
        arxiv="2410.04417",
        year=2025,
        authors="Zhang et al.",
        venue="ICML",
        code="https://github.com/Gumpest/SparseVLMs",
        licence="Apache-2.0",
        commit="26a5f48",
        variants=("v1", "plus"),
    )

    @property
    def positions(self) -> str:  # type: ignore[override]
        """As published: `v1` numbers tokens anew."""
        return "compact" if self.version == "v1" else "original"

    def __post_init__(self) -> None:
        if self.version not in _LISTS:
            hint = nearest(str(self.version), _LISTS)
            raise BudgetError(f"SparseVLM(version={self.version!r}): allowed are 'v1' and 'plus'.{hint}")
        known = _LISTS[self.version]
        if self.keep is None and self.retain not in known:
            near = min(known, key=lambda budget: abs(budget - self.retain))
            raise BudgetError(
                f"SparseVLM(retain={self.retain}): published are {', '.join(map(str, known))}; the nearest is {near}."
                " Give keep=... for any other budget."
            )

    def stages(self, depth: int) -> tuple[Stage, ...]:
        layers = [round(layer * depth / 32) for layer in (3, 7, 16)]
        layers = [min(max(number + 1, layer), depth - 3 + number) for number, layer in enumerate(layers)]
        if self.keep is None:
            levels = [Keep(ratio=count / _ALL) for count in _LISTS[self.version][self.retain]]
        else:
            *_, last = shape = _LISTS[self.version][192]
            levels = [replace(Keep.of(self.keep), times=count / last) for count in shape]
        return tuple(
            Stage(f"decoder.{layer}", RatedTokens(tuple(levels[: number + 1]), self.version))
            for number, layer in enumerate(layers)
        )
