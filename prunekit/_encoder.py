"""One run of a vision encoder's layers: what was read there, and what was dropped.

There are two kinds of encoders. Most run on a batch of images of one size, [images, prefix + patches, dim]. Packed ones
run on the patches of all images in one sequence, [patches, dim] or [1, patches, dim], with attention inside each image.
To a policy both look alike: a row is an image, and its tokens are those that the language model will see.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from prunekit._align import spread
from prunekit._encoder_layers import Shorter
from prunekit.errors import PolicyError, UnsupportedInputError
from prunekit.needs import Rows, States
from prunekit.patches import Encoded, Image
from prunekit.plan import Stage
from prunekit.selection import Selection, merged
from prunekit.sequence import first_columns, gather, scatter

__all__ = ["Pruned", "Run"]


@dataclass(frozen=True)
class Pruned:
    """What a stage inside the encoder decided.

    Attributes:
        flags: whether each token of all images stays, [tokens].
        scores: its score, [tokens], or None.
        counts: tokens left of each image.
    """

    stage: Stage
    flags: Tensor
    scores: Tensor | None
    counts: tuple[int, ...]


@dataclass
class Run:
    """One run of the encoder's layers.

    Attributes:
        encoded: the call of the model's method that it is a part of.
        packed: whether all images are in one sequence.
        prefix: tokens before the patches of each image.
        patches: patches of a row of the encoder's batch.
        totals: visual tokens of each image; known once a stage needs them.
        groups: columns (without prefix) of the patches of each visual token, [tokens, patches of a token]; those of one
            image, or of all images if packed.
        source: visual tokens that are left of each image, [images, left], -1 at the right.
        counts: how many that are.
        shorter: what later layers are handed; None: all patches.
        found: tapped rows by patch, in chunks, and the columns they are of.
        first: states of [CLS], [rows, ..., dim, 1].
    """

    encoded: Encoded
    packed: bool
    prefix: int
    rows: int
    patches: int
    totals: tuple[int, ...] = ()
    counts: tuple[int, ...] = ()
    groups: Tensor | None = None
    source: Tensor | None = None
    shorter: Shorter | None = None
    found: dict[tuple[Rows | States, int], tuple[list[Tensor], Tensor | None]] = field(default_factory=dict)
    first: dict[tuple[States, int], Tensor] = field(default_factory=dict)
    pruned: list[Pruned] = field(default_factory=list)
    memory: dict[str, Any] = field(default_factory=dict)

    # --- reading -----------------------------------------------------------------------------------------------------

    def note(self, rows: Rows | States, layer: int, seen: Tensor) -> None:
        """Note what one attention call showed of the patches in it; a packed encoder calls once for each chunk."""
        left = None if self.shorter is None else self.shorter.columns
        self.found.setdefault((rows, layer), ([], left))[0].append(seen)

    def values(self, rows: Rows | States, layer: int) -> Tensor:
        """Tapped rows by patch, [rows, ..., patches]; 0 for patches that had been dropped."""
        chunks, left = self.found[rows, layer]
        joined = torch.cat(chunks, -1)
        return joined if left is None else spread(joined, left[:, self.prefix :] - self.prefix, self.patches)

    # --- dropping ----------------------------------------------------------------------------------------------------

    def begin(self, groups: Tensor, totals: tuple[int, ...], device: torch.device) -> None:
        """Set up for the first stage."""
        if not groups.shape[1]:
            raise UnsupportedInputError("The vision encoder was given no patches.")
        self.groups, self.totals, self.counts = groups.to(device), totals, totals
        numbers = torch.arange(max(totals), device=device)
        self.source = torch.where(numbers < torch.tensor(totals, device=device)[:, None], numbers, -1)

    def states(self, hidden: Tensor, groups: Tensor, prefix: int) -> tuple[Tensor, Tensor]:
        """States of the tokens that are left, [images, left, patches of a token, dim], and their columns.

        Args:
            hidden: states of all columns, behind `prefix` others.
            groups: columns of each token, as the attribute of this name.
        """
        assert self.source is not None
        index = groups[self._flat(self.source)] + prefix  # [images, left, patches of a token]
        if self.packed:
            return hidden.reshape(-1, hidden.shape[-1])[index], index
        return gather(hidden, index.flatten(1)).unflatten(1, index.shape[1:]), index

    def tokens(
        self, states: Tensor, found: dict[Any, Tensor], grids: Sequence[tuple[int, int] | None]
    ) -> dict[str, Any]:
        """What a policy sees besides attention: fields of `VisualTokens`.

        Args:
            states: of the tokens that are left, see `states`.
            found: values by patch, [rows, ..., patches]; turned into values by token in place, [images, ..., tokens].
            grids: of each image.
        """
        assert self.groups is not None
        assert self.source is not None
        hidden = states
        everything = self._flat(torch.arange(max(self.totals), device=hidden.device).expand(len(self.totals), -1))
        for key, values in found.items():
            pooled = values[..., self.groups].mean(-1)
            found[key] = pooled[0][..., everything].movedim(-2, 0) if self.packed else pooled
        return {
            "hidden": states.mean(2),
            "source": self.source,
            "valid": self.source >= 0,
            "total": self.totals,
            "counts": self.counts,
            "grid": grids[0] if len(set(grids)) == 1 else None,
            "per_image": self.totals[0] if len(set(self.totals)) == 1 else None,
            "images": tuple((Image(total, grid),) for total, grid in zip(self.totals, grids, strict=True)),
            "alive": tuple((count,) for count in self.counts),
            "memory": self.memory,
        }

    def merge(self, hidden: Tensor, states: Tensor, index: Tensor, selection: Selection) -> Tensor:
        """Write merged tokens over the columns of those that stay; `states` and `index` as `states` returned them.

        Patches of a token are merged each with those at the same place of the other tokens.
        """
        if selection.extra is not None and states.shape[2] > 1:
            raise PolicyError("Selection.extra cannot be mixed with tokens that are made of several patches.")
        means = merged(states.flatten(2), selection)  # [images, kept, patches of a token * dim]
        width = index.shape[-1]
        means = means.unflatten(-1, (width, -1)).flatten(1, 2)
        kept = selection.kept.to(index.device)
        columns = index.gather(1, kept.clamp(min=0)[..., None].expand(-1, -1, width))
        columns = columns.masked_fill(kept[..., None] < 0, -1).flatten(1)
        if self.packed:
            means, columns = means.flatten(0, 1)[None], columns.flatten()[None]
        flat = hidden.reshape(columns.shape[0], -1, hidden.shape[-1])
        return scatter(means.to(hidden.dtype), columns, flat.shape[1], flat).view(hidden.shape)

    def keep(self, stage: Stage, selection: Selection, counts: tuple[int, ...]) -> None:
        """Drop what a policy dropped."""
        assert self.groups is not None
        assert self.source is not None
        kept = self.source.gather(1, selection.kept.clamp(min=0)).masked_fill(selection.kept < 0, -1)
        scores = selection.scores
        if scores is not None:
            scores = self._of_images(spread(scores.float(), self.source, max(self.totals), torch.nan))
        self.source, self.counts = kept, counts
        flags = spread(torch.ones_like(kept, dtype=torch.float32), kept, max(self.totals)) > 0  # [images, tokens]
        self.pruned.append(Pruned(stage, self._of_images(flags), scores, counts))
        stays = self._of_images(flags)[None] if self.packed else flags  # [rows, tokens of a row]
        size = self.groups.shape[1]
        columns = torch.zeros(stays.shape[0], self.patches, dtype=torch.bool, device=stays.device)
        columns = columns.scatter(1, self.groups.flatten().expand(len(stays), -1), stays.repeat_interleave(size, 1))
        most = sum(counts) if self.packed else max(counts)
        ragged = not self.packed and min(counts) != most
        if most * size == self.groups.numel() and selection.bias is None and not ragged:
            self.shorter = None
            return
        index, real = first_columns(columns, most * size)
        first = torch.arange(self.prefix, device=index.device).expand(len(index), -1)
        left = torch.cat([first, (index + self.prefix).masked_fill(~real, -1)], 1)
        mask = self._bias(selection, kept, left, ragged)
        self.shorter = Shorter(self.packed, self.prefix, self.patches, left, mask)

    def _bias(self, selection: Selection, kept: Tensor, left: Tensor, ragged: bool) -> Tensor | None:
        """What is added to the logits of the columns that are left, [rows, 1, 1, left]."""
        if selection.bias is None and not ragged:
            return None
        if self.packed:
            raise PolicyError("Selection.bias: an encoder that runs on all images in one sequence takes no mask.")
        assert self.groups is not None
        added = torch.zeros(kept.shape, device=kept.device) if selection.bias is None else selection.bias.float()
        added = spread(added, kept, max(self.totals))  # by token
        size = self.groups.shape[1]
        patches = added.new_zeros(len(kept), self.patches)
        patches = patches.scatter(1, self.groups.flatten().expand(len(kept), -1), added.repeat_interleave(size, 1))
        whole = torch.nn.functional.pad(patches, (self.prefix, 0))
        mask = whole.gather(1, left.clamp(min=0))
        return mask.masked_fill(left < 0, torch.finfo(mask.dtype).min)[:, None, None]

    def _flat(self, source: Tensor) -> Tensor:
        """Numbers in `groups` of tokens [images, tokens]."""
        if not self.packed:
            return source.clamp(min=0)
        starts = list(accumulate(self.totals, initial=0))[:-1]
        index = source.clamp(min=0) + torch.tensor(starts, device=source.device)[:, None]
        return index.clamp(max=sum(self.totals) - 1)

    def _of_images(self, values: Tensor) -> Tensor:
        """Values of tokens [images, tokens] one after the other: [tokens of all images]."""
        if len(set(self.totals)) == 1:
            return values.flatten()
        return torch.cat([row[:total] for row, total in zip(values, self.totals, strict=True)])
