"""VisPruner: prune before the language model by visual cues alone: importance, then variety."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import PolicyError
from prunekit.keep import Keep
from prunekit.needs import Needs, Rows, States
from prunekit.plan import Method, Stage
from prunekit.policies._greedy import cosines, picked
from prunekit.policy import Products, PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["VisPruner"]

_FEATURES = States("hidden", of_vision=True)
_AT_ONCE = 8  # dropped in a round


@dataclass(frozen=True)
class ImportantAndVaried(PruningPolicy):
    """The important tokens, and of the others those that are left when near duplicates are dropped; see `VisPruner`."""

    important: float = 0.5

    needs = Needs(Rows("cls", reduce="mean"), states=_FEATURES)
    sites = ("input",)

    def __post_init__(self) -> None:
        if not 0 <= self.important <= 1:
            raise PolicyError(f"VisPruner(important={self.important}): must be at least 0 and at most 1.")

    def products(self, given: Products) -> int:
        return given.now**2 * given.features

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        assert keep is not None
        counts = tokens.budget(keep)
        first = [int(count * self.important) for count in counts]
        attention = tokens.attention["cls"].float().masked_fill(~tokens.valid, -torch.inf)
        ranked = attention.argsort(dim=-1, descending=True, stable=True)
        place = torch.arange(ranked.shape[1], device=ranked.device)
        start = torch.tensor(first, device=ranked.device)[:, None]
        rest = ranked.gather(1, (place + start).clamp(max=ranked.shape[1] - 1))  # by falling attention
        sizes = [there - taken for there, taken in zip(tokens.counts, first, strict=True)]
        targets = [count - taken for count, taken in zip(counts, first, strict=True)]
        rest = self._varied(rest, sizes, targets, cosines(tokens.states[_FEATURES]))
        index = place[: max(counts)]
        taken = rest.gather(1, (index - start).clamp(0, rest.shape[1] - 1))
        return picked(torch.where(index < start, ranked[:, : max(counts)], taken), counts, ranked.shape[1])

    def _varied(self, rest: Tensor, sizes: list[int], targets: list[int], similar: Tensor) -> Tensor:
        """Drop from lists of tokens [batch, visual] until `targets` are left; those come first.

        Each round splits the list in two by turns, and drops the `_AT_ONCE` of the first half that are most similar to
        one of the second. What is left of the first half, most similar ones first, goes before the second.
        """
        place = torch.arange(rest.shape[1], device=rest.device)
        while any(size > target for size, target in zip(sizes, targets, strict=True)):
            width = max(sizes)
            rest, place = rest[:, :width], place[:width]
            size = torch.tensor(sizes, device=rest.device)[:, None]
            block = similar.gather(1, rest[:, ::2, None].expand(-1, -1, similar.shape[2]))
            block = block.gather(2, rest[:, None, 1::2].expand(-1, block.shape[1], -1))
            block = block.masked_fill((place[1::2] >= size)[:, None], -2.0)
            score = torch.full(rest.shape, -3.0, device=rest.device)
            score[:, ::2] = block.amax(-1) if block.shape[2] else -2.0
            key = score.masked_fill(place >= size, -4.0)  # first half by falling score, second half, padding
            order = key.argsort(dim=1, descending=True, stable=True)
            gone = [min(_AT_ONCE, now - target) for now, target in zip(sizes, targets, strict=True)]
            index = (place + torch.tensor(gone, device=rest.device)[:, None]).clamp(max=width - 1)
            rest = rest.gather(1, order.gather(1, index))
            sizes = [now - dropped for now, dropped in zip(sizes, gone, strict=True)]
        return rest


@dataclass(frozen=True)
class VisPruner(Method):
    """VisPruner (Zhang et al., ICCV 2025, arXiv 2412.01818v2): visual cues for pruning, beyond text.

    Of T tokens, `int(T * important)` are those with the largest [CLS] attention in the encoder layer that produces the
    features. The rest is listed by falling attention and thinned out: in each round, list members at even places are
    compared with those at odd places (cosine of the encoder's features), and the 8 with the largest similarity are
    dropped, until T are left. Authors' code: github.com/Theia-4869/VisPruner.

    Args:
        keep: visual tokens that stay: a share of the original ones (float) or a number (int).
        important: share of them that is chosen by attention.

    Differs from the reference: the released code fails where the list has an odd number of members; here the last one
    belongs to the even places.
    """

    keep: int | float | Keep = 64
    important: float = 0.5

    positions = "compact"
    reference = Reference(
        name="VisPruner",
        arxiv="2412.01818v2",
        year=2025,
        authors="Zhang et al.",
        venue="ICCV",
        code="https://github.com/Theia-4869/VisPruner",
        licence="Apache-2.0",
        commit="aefa01a",
    )

    def stages(self, depth: int) -> tuple[Stage, ...]:
        return (Stage("input", ImportantAndVaried(self.important), Keep.of(self.keep)),)
