"""HiRED: a budget for every tile of a high-resolution image, spent by [CLS] attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import BudgetError
from prunekit.keep import Keep
from prunekit.needs import Needs, Rows
from prunekit.plan import Method, Stage
from prunekit.policies._greedy import rank_within
from prunekit.policies.self_attention import SelfAttention
from prunekit.policy import PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["HiRED"]

_EARLY, _LATE = Rows("cls", 0, reduce="mean"), Rows("cls", reduce="mean")


@dataclass(frozen=True)
class TileBudgets(PruningPolicy):
    """The best tokens of every tile, as many as the thumbnail says that it is worth; see `HiRED`."""

    rate: float = 0.2
    alpha: float = 0.5

    needs = Needs([_EARLY, _LATE], patches=True)
    needs_keep = False
    sites = ("input",)

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        assert tokens.patches is not None
        tile = tokens.patches[..., 0]
        real = (tile >= 0) & tokens.valid  # separators are made from no patch
        width = tile.shape[1]
        group = torch.where(real, tile, width)
        early, late = (rank_within(group, tokens.attention[rows].float()) for rows in (_EARLY, _LATE))
        stays = real & (late < self._budgets(tokens, real, early))
        kept = torch.where(stays, torch.arange(width, device=tile.device), width).sort(1).values
        return Selection(kept.masked_fill(kept == width, -1))  # the data decide how many: the core counts them

    def _budgets(self, tokens: VisualTokens, real: Tensor, early: Tensor) -> Tensor:
        """What the tile of each token may keep, [batch, visual]; the first tile of an image is its thumbnail."""
        assert tokens.patches is not None
        tile, place = tokens.patches.unbind(-1)
        width = tile.shape[1]
        image = torch.where(real, tokens.image_number(), width)
        table = torch.zeros(len(tile), width + 1, dtype=tile.dtype, device=tile.device)  # by image, or by tile
        first = (table + width).scatter_reduce(1, image, tile, "amin").gather(1, image)
        many = table.scatter_reduce(1, image, tile, "amax").gather(1, image) - first + 1
        size = place.amax(1, keepdim=True).clamp(min=0) + 1
        total = (many.double() * size * self.rate).floor()
        main = torch.minimum((total * self.alpha).floor(), size)
        marks = (size.double() * (1 - self.alpha)).floor()
        marked = real & (tile == first) & (early < marks)
        part = first + 1 + place * (many - 1).clamp(min=1) // size  # the tile that a patch of the thumbnail speaks for
        part = torch.where(marked, part.clamp(max=width), width)
        there = table.scatter_add(1, part, marked.long()).gather(1, tile.clamp(0, width))
        share = there.float() / marks.clamp(min=1).float()
        rest = torch.minimum((share * (total - main).float()).floor(), size)
        return torch.where(many == 1, torch.minimum(total, size), torch.where(tile == first, main, rest)).long()


@dataclass(frozen=True)
class HiRED(Method):
    """HiRED (Arif et al., AAAI 2025, arXiv 2408.10945): attention-guided dropping with a budget for every tile.

    Before the language model. For models with one tile an image: the tokens with the most [CLS] attention in the layer
    that produces the features. For tiles: of an image's budget `rate * tiles * patches`, the share `alpha` goes to the
    thumbnail, the rest to the tiles by how many of the thumbnail's `(1 - alpha) * patches` patches with the most [CLS]
    attention in the first layer lie in each tile's part of it. Each tile keeps its best by attention in the late layer.
    Authors' code: github.com/hasanar1f/HiRED.

    Args:
        keep: visual tokens that stay: a share of the original ones (float) or a number (int); with tiles the share
            `rate` of all patches, 0.2 as published.
        tiles: whether images come as a thumbnail and tiles (LLaVA-NeXT).
        alpha: the thumbnail's share.

    Differs from the reference: none of a tile's budget goes to patches that the model itself cuts off as padding, and
    tiles stay where they are, where the released code mixes up those of grids that are not square. An image of a single
    tile keeps the share of its patches, where the released code does not prune it. As there, a tile's
    part of the thumbnail is a run of its patches row by row, no rectangle; shares are truncated, so that some tokens
    fewer stay; and separators between tiles are dropped.
    """

    keep: int | float | Keep = 0.2
    tiles: bool = False
    alpha: float = 0.5

    positions = "compact"
    reference = Reference(
        name="HiRED",
        arxiv="2408.10945",
        year=2025,
        authors="Arif et al.",
        venue="AAAI",
        code="https://github.com/hasanar1f/HiRED",
        commit="502d6dd",
    )

    def __post_init__(self) -> None:
        keep = Keep.of(self.keep)
        if self.tiles and (keep.ratio is None or keep != Keep(ratio=keep.ratio)):
            near = keep.tokens / (5 * 576) if keep.ratio is None and keep.tokens else keep.ratio
            raise BudgetError(
                f"HiRED(keep={self.keep!r}, tiles=True): its budget is a share of all patches; of five tiles of 576"
                f" patches the nearest is keep={near:.4g}."
            )
        if not 0 <= self.alpha <= 1:
            raise BudgetError(f"HiRED(alpha={self.alpha}): must be at least 0 and at most 1.")

    def stages(self, depth: int) -> tuple[Stage, ...]:
        keep = Keep.of(self.keep)
        if self.tiles and keep.ratio is not None:
            return (Stage("input", TileBudgets(keep.ratio, self.alpha)),)
        return (Stage("input", SelfAttention("cls"), keep),)
