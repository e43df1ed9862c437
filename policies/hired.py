"""HiRED: a budget for every tile of a high-resolution image, spent by [CLS] attention."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import BudgetError
from prunekit.keep import Keep
from prunekit.needs import Needs, Rows
from prunekit.plan import Method, Stage
from prunekit.policies._greedy import picked
from prunekit.policies.self_attention import SelfAttention
from prunekit.policy import PruningPolicy
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
        tile, place = tokens.patches.unbind(-1)
        tiles, size = (each + 1 for each in tokens.patches.flatten(0, 1).amax(0).tolist())  # one host read
        real = tile >= 0  # separators are made from no patch
        slot = torch.where(real, tile * size + place, tiles * size)
        early, late = (self._table(tokens.attention[rows].float(), slot, tiles, size) for rows in (_EARLY, _LATE))
        image = torch.full(early.shape[:2], -1, device=slot.device)
        image = image.scatter_reduce(1, tile.clamp(min=0), tokens.image_number().masked_fill(~real, -1), "amax")
        budget = self._budgets(early, image, size)
        rank = late.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
        chosen = torch.nn.functional.pad((rank < budget[..., None]).flatten(1), (0, 1)).gather(1, slot)
        stays = chosen & real
        counts = tuple(stays.sum(1).tolist())  # truncated shares and cut-off padding are the data's: a host read
        width = stays.shape[1]
        return picked((~stays).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(counts)], counts, width)

    def _table(self, values: Tensor, slot: Tensor, tiles: int, size: int) -> Tensor:
        """Values by tile and place, [batch, tiles, size]; -1 where there is no token."""
        empty = torch.full((len(values), tiles * size + 1), -1.0, device=values.device)
        return empty.scatter(1, slot, values)[:, :-1].unflatten(1, (tiles, size))

    def _budgets(self, early: Tensor, image: Tensor, size: int) -> Tensor:
        """Tokens of each tile, [batch, tiles]; the first tile of an image is its thumbnail."""
        tiles = image.shape[1]
        number = torch.arange(tiles, device=image.device).expand_as(image)
        same = (image[:, :, None] == image[:, None]) & (image >= 0)[:, None]
        first = torch.where(same, number[:, None], tiles).amin(-1).clamp(max=tiles - 1)  # each tile's thumbnail
        many = same.sum(-1)
        total = (many.double() * size * self.rate).floor()
        main = (total * self.alpha).floor().clamp(max=size)
        marks = int(size * (1 - self.alpha))
        marked = early.argsort(dim=-1, descending=True, stable=True).argsort(dim=-1) < marks
        marked = marked.gather(1, first[..., None].expand_as(marked))  # those of the thumbnail, for each tile
        runs = (many - 1).clamp(min=1)
        run = torch.arange(size, device=image.device) * runs[..., None] // size
        share = ((run == (number - first - 1)[..., None]) & marked).sum(-1).float() / max(1, marks)
        rest = (share * (total - main).float()).floor().clamp(max=size)
        alone = total.clamp(max=size)
        return torch.where(many == 1, alone, torch.where(number == first, main, rest)).long()


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
    tiles stay where they are, where the released code mixes up those of grids that are not square. As there, a tile's
    part of the thumbnail is a run of its patches row by row, no rectangle; shares are truncated, so that some tokens
    fewer stay; and separators between tiles are dropped.
    """

    keep: int | float | Keep = 0.2
    tiles: bool = False
    alpha: float = 0.5

    positions = "compact"

    def __post_init__(self) -> None:
        if self.tiles and not isinstance(self.keep, float):
            raise BudgetError(f"HiRED(keep={self.keep!r}, tiles=True): a share of all patches, such as 0.2.")
        if not 0 <= self.alpha <= 1:
            raise BudgetError(f"HiRED(alpha={self.alpha}): must be at least 0 and at most 1.")

    def stages(self, depth: int) -> tuple[Stage, ...]:
        if isinstance(self.keep, float) and self.tiles:
            return (Stage("input", TileBudgets(self.keep, self.alpha)),)
        return (Stage("input", SelfAttention("cls"), Keep.of(self.keep)),)
