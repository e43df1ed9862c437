"""Duplication: tokens that are as unlike some pivots as can be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Int
from torch import Tensor

from prunekit.errors import PolicyError
from prunekit.keep import Keep
from prunekit.needs import Keys, Needs, States
from prunekit.policies._greedy import picked
from prunekit.policy import Products, PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["Duplication"]

_TEXT_KEYS = States("key", of="text")
_VISUAL, _TEXT = States("normed"), States("normed", of="text")


@dataclass(frozen=True)
class Duplication(PruningPolicy):
    """Keep pivots, and of the other tokens those that duplicate each pivot least.

    Pivots are the visual tokens and the question's tokens whose attention keys, all heads together, have the largest L1
    norm. Each pivot in turn takes the visual tokens with the lowest cosine to it that nobody took before, all pivots
    equally many; states are those at the site, put through the language model's final norm. Visual pivots stay, too.
    The rule behind DART (arXiv 2502.11494). Ties go to the first token.

    Args:
        images: pivots among the visual tokens.
        texts: pivots among the question's tokens.
        released: whether pivots take their turns in the order of Python's set of their positions, as DART's released
            code does, and what cannot be divided equally is left out; otherwise visual pivots come first, largest norm
            first, and the first ones take one more.
        taken: tokens that each pivot takes, with `released`; None to divide the stage's budget.
    """

    images: int = 4
    texts: int = 4
    released: bool = False
    taken: int | None = None

    needs = Needs(keys=Keys(of_vision=False), text=True, states=(_TEXT_KEYS, _VISUAL, _TEXT))
    sites = ("decoder",)
    reference = Reference(
        name="DART",
        arxiv="2502.11494",
        year=2025,
        authors="Wen et al.",
        venue="EMNLP",
        code="https://github.com/Chenfei-Liao/VTC-Bench",
        commit="983e443",
        variants=("paper", "released"),
    )

    def __post_init__(self) -> None:
        if self.images < 1 or self.texts < 0:
            raise PolicyError(f"Duplication(images={self.images}, texts={self.texts}): at least 1 and at least 0.")
        if self.taken is not None and self.taken < 0:
            raise PolicyError(f"Duplication(taken={self.taken}): must be at least 0.")

    @property
    def needs_keep(self) -> bool:  # type: ignore[override]
        return self.taken is None

    @property
    def waits(self) -> bool:  # type: ignore[override]
        return self.released

    def planned(self, total: int) -> int | None:
        return None if self.taken is None else min(total, self.images + (self.images + self.texts) * self.taken)

    def pivots(self, tokens: VisualTokens) -> Int[Tensor, "batch pivots"]:
        """Pivots in the order of their turns: numbers of visual tokens, and behind them those of text tokens."""
        assert tokens.keys is not None
        assert tokens.question is not None
        assert tokens.positions is not None
        assert tokens.text_positions is not None
        norms = [
            rearrange(keys.float(), "b h n d -> b n (h d)").abs().sum(-1).masked_fill(~real, -1)
            for keys, real in ((tokens.keys, tokens.valid), (tokens.states[_TEXT_KEYS], tokens.question))
        ]
        width = tokens.valid.shape[1]
        first, second = (
            each.argsort(dim=1, descending=True, stable=True)[:, :many]
            for each, many in zip(norms, (self.images, self.texts), strict=True)
        )
        found = torch.cat([first, second + width], 1)
        if not self.released:
            return found
        place = torch.cat([tokens.positions, tokens.text_positions], 1).gather(1, found)
        real = torch.cat([tokens.valid, tokens.question], 1).gather(1, found)
        rows = []
        for row in place.masked_fill(~real, -1).tolist():  # the order of a set is the host's to know: one read
            there = [position for position in row if position >= 0]
            absent = [number for number, position in enumerate(row) if position < 0]  # fewer tokens than pivots
            rows.append([row.index(position) for position in set(there)] + absent)
        return found.gather(1, torch.tensor(rows, device=found.device))

    def products(self, given: Products) -> int:
        return given.now * (self.images + self.texts) * given.width

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        width = tokens.valid.shape[1]
        if keep is not None:
            counts = tokens.budget(keep)
        else:
            asked = [self.planned(there) or 0 for there in tokens.counts]
            counts = tuple(min(count, there) for count, there in zip(asked, tokens.counts, strict=True))
        assert tokens.question is not None
        pivots = self.pivots(tokens)
        visual, text = (torch.nn.functional.normalize(tokens.states[s].float(), dim=-1) for s in (_VISUAL, _TEXT))
        every = torch.cat([visual, text], 1)
        similar = every.gather(1, pivots[..., None].expand(-1, -1, every.shape[-1])) @ visual.transpose(1, 2)
        real = torch.cat([tokens.valid, tokens.question], 1).gather(1, pivots)  # rows may have fewer tokens than pivots
        own = (pivots < width) & real
        stays = torch.zeros(len(pivots), width + 1, dtype=torch.bool, device=pivots.device)
        stays = stays.scatter(1, torch.where(own, pivots, width), True)[:, :width]
        first = [min(self.images, count) for count in counts]
        stays = stays & self._among(pivots, first, width)
        ranks, turn_of = torch.arange(width, device=pivots.device), real.long().cumsum(1) - 1
        left = torch.tensor(counts, device=pivots.device)[:, None] - stays.sum(1, keepdim=True)
        turns = real.sum(1, keepdim=True).clamp(min=1)
        quotas = (left // turns + (turn_of < left % turns)) * real
        for turn, quota in enumerate(quotas.split(1, 1)):
            score = similar[:, turn].masked_fill(stays | ~tokens.valid, torch.inf)
            order = score.argsort(dim=1, stable=True)
            stays = stays.scatter(1, order, stays.gather(1, order) | (ranks < quota))
        return picked((~stays).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts)], counts, width)

    def _among(self, pivots: Tensor, first: list[int], width: int) -> Tensor:
        """The first visual pivots of each row, as many as its budget has room for: [batch, visual]."""
        own = pivots < width
        within = own & (own.long().cumsum(1) <= torch.tensor(first, device=pivots.device)[:, None])
        flags = torch.zeros(len(pivots), width + 1, dtype=torch.bool, device=pivots.device)
        return flags.scatter(1, torch.where(within, pivots, width), True)[:, :width]
