"""Which token sits in which column: the bookkeeping that every gather, scatter and mask is made from.

Shapes depend on host integers alone (tokens per row), and contents stay tensors on the device, so that the same code
runs under `torch.jit.trace`, on the meta device and without waiting for a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

__all__ = ["Sequence", "first_columns", "gather", "last_columns", "scatter"]


@dataclass(frozen=True)
class Sequence:
    """The columns of a (possibly shortened) sequence.

    Attributes:
        origin: for each column its column in the sequence as the caller sent it, [batch, length]; -1 is padding.
        ordinal: number of the visual token in that column within its row, [batch, length]; -1 for text, [CLS] and
            padding.
        visual: visual tokens of each row.
        other: tokens of each row that are not visual (text; in a vision encoder the prefix tokens).
    """

    origin: Tensor
    ordinal: Tensor
    visual: tuple[int, ...]
    other: tuple[int, ...]

    @classmethod
    def of(cls, is_visual: Tensor, is_token: Tensor, visual: tuple[int, ...], other: tuple[int, ...]) -> Sequence:
        """Start from two masks of the caller's columns, [batch, length], and their sums per row."""
        columns = torch.arange(is_visual.shape[1], device=is_visual.device)
        number = is_visual.long().cumsum(-1) - 1
        return cls(torch.where(is_token, columns, -1), number.masked_fill(~is_visual, -1), visual, other)

    @property
    def length(self) -> int:
        return int(self.origin.shape[1])

    @cached_property
    def padded(self) -> bool:
        """Whether any column of any row is padding."""
        return any(v + o != self.length for v, o in zip(self.visual, self.other, strict=True))

    @cached_property
    def visual_columns(self) -> tuple[Tensor, Tensor]:
        """Columns of the visual tokens in order and which entries are real, each [batch, max(visual)]."""
        return first_columns(self.ordinal >= 0, max(self.visual))

    def keep(self, kept: Tensor, counts: tuple[int, ...]) -> tuple[Sequence, Tensor]:
        """Keep the visual tokens at positions `kept` (of `visual_columns`, -1 unused) and every other token.

        Returns:
            The shortened sequence, padded at the left, and for each of its columns the column it comes from (-1:
            padding).
        """
        columns, _ = self.visual_columns
        kept = kept.to(columns.device)
        chosen = columns.gather(1, kept.clamp(min=0)).masked_fill(kept < 0, self.length)
        stays = (self.origin >= 0) & (self.ordinal < 0)
        stays = torch.nn.functional.pad(stays, (0, 1)).scatter(1, chosen, 1)[:, :-1]  # last column takes the unused
        length = max(v + o for v, o in zip(counts, self.other, strict=True))
        index, real = last_columns(stays, length)
        shorter = Sequence(
            self.origin.gather(1, index).masked_fill(~real, -1),
            self.ordinal.gather(1, index).masked_fill(~real, -1),
            counts,
            self.other,
        )
        return shorter, index.masked_fill(~real, -1)


def first_columns(flags: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The first `width` True columns of each row in order (then False ones), and which are True: two [batch, width]."""
    index = (~flags).to(torch.uint8).argsort(dim=1, stable=True)[:, :width]
    return index, flags.gather(1, index)


def last_columns(flags: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The last `width` True columns of each row in order (after False ones), and which are True: [batch, width]."""
    index = flags.to(torch.uint8).argsort(dim=1, stable=True)[:, flags.shape[1] - width :]
    return index, flags.gather(1, index)


def gather(states: Tensor, index: Tensor, dim: int = 1, batch: int = 0) -> Tensor:
    """Take columns `index` [batch, new] of `states` along `dim`; -1 takes column 0 (a mask hides it).

    Axis `batch` of `states` is the batch, or 1 where all rows share it; axes before, between and after are kept.
    """
    index = index.clamp(min=0).to(states.device)
    sizes, rows = list(states.shape), index.shape[0]
    # Whole columns are copied where they can be: on a CPU, five times as fast as element by element.
    if rows == sizes[batch] == 1:
        return states.index_select(dim, index[0])
    if rows == sizes[batch] and dim == batch + 1:
        starts = torch.arange(rows, device=index.device)[:, None] * sizes[dim]
        flat = states.flatten(batch, dim).index_select(batch, (index + starts).flatten())
        return flat.view(*sizes[:batch], *index.shape, *sizes[dim + 1 :])
    if sizes[batch] == 1 != rows:
        sizes[batch] = index.shape[0]
        states = states.expand(sizes)
    shape = [1] * states.ndim
    shape[batch], shape[dim] = index.shape
    sizes[dim] = index.shape[1]
    return states.gather(dim, index.view(shape).expand(sizes))


def scatter(states: Tensor, index: Tensor, length: int, onto: Tensor | None = None) -> Tensor:
    """The inverse of `gather`: put `states` [batch, new, dim] at columns `index`; -1 is left out.

    The other columns are those of `onto`, or zero.
    """
    batch, _, width = states.shape
    full = states.new_zeros(batch, length + 1, width)  # one column more takes what is left out
    if onto is not None:
        full[:, :length] = onto
    index = index.to(states.device)
    starts = torch.arange(batch, device=index.device)[:, None] * (length + 1)
    place = torch.where(index >= 0, index, length) + starts
    full.view(-1, width).index_copy_(0, place.flatten(), states.flatten(0, 1))
    return full[:, :length]
