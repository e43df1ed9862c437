"""The state of one forward pass of the language model, and the small computations on it."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import NeedsError
from prunekit.needs import Rows, States
from prunekit.patches import Image
from prunekit.selection import Selection, merged
from prunekit.sequence import Sequence, first_columns, gather, last_columns

__all__ = ["Call", "Sent", "merge", "text_columns", "text_rows"]


@dataclass
class Sent:
    """What the caller sent, read at the model's entry.

    Attributes:
        visual: columns of visual tokens, [batch, length].
        video: columns filled from videos, [batch, length]; None where no row has any.
        tokens: columns that are no padding, [batch, length].
        counts: visual tokens of each row.
        videos: visual tokens of each row that come from videos.
        others: other tokens of each row.
        after: text tokens after the last visual one, of each row.
        ids: token ids, [batch, length], or None.
    """

    visual: Tensor
    video: Tensor | None
    tokens: Tensor
    counts: tuple[int, ...]
    videos: tuple[int, ...]
    others: tuple[int, ...]
    after: tuple[int, ...]
    ids: Tensor | None

    @classmethod
    def read(cls, image: Tensor, video: Tensor | None, mask: Any, ids: Tensor | None) -> Sent:
        visual = image if video is None else image | video
        length = visual.shape[1]
        told = isinstance(mask, Tensor) and mask.ndim == 2
        tokens = mask[:, -length:].to(visual.device) != 0 if told else torch.ones_like(visual)
        visual = visual & tokens
        columns = torch.arange(length, device=visual.device)
        last = torch.where(visual, columns, -1).amax(1, keepdim=True)
        text = tokens & ~visual
        moving = torch.zeros_like(visual) if video is None else visual & video
        sums = torch.stack([each.sum(1) for each in (visual, moving, text, text & (columns > last))])
        # the one host read of a prefill: all later shapes follow from it
        counts, videos, others, after = map(tuple, sums.tolist())
        return cls(visual, moving if any(videos) else None, tokens, counts, videos, others, after, ids)


@dataclass
class Call:
    """One forward pass of the language model. Columns are those that the caller sent in it.

    Attributes:
        batch: rows.
        length: columns that the caller sent.
        base: columns that were sent before and are in the cache.
        holes: whether some layer's cache holds padding.
        cache: the KV cache, or None.
        positions: original position ids of the sent columns, [batch or 1, length] (of M-RoPE, the text's); None where
            neither the caller nor the session needs them.
        sent: what the caller sent, None for a call without images.
        sequence: the columns that are left; None for a call that is not pruned.
        left: `sequence.origin` once a token was dropped; None: all columns are there.
        restored: whether the states that the next layer receives are at full length.
        ending: whether the last layer has been reached.
        numbers: numbers of each row's images among all, None where they cannot be told apart.
        images: these images.
        alive: tokens of each image that are left, None where that depends on the data.
        attention: tapped rows of the decoder by original visual number, [batch, ..., visual].
        replay: whether the decisions of an earlier call are repeated.
        embeds: the embeddings of all columns, where a policy reads them.
    """

    batch: int
    length: int
    base: int
    holes: bool
    cache: Any
    positions: Tensor | None
    sent: Sent | None
    sequence: Sequence | None = None
    left: Tensor | None = None
    restored: bool = False
    ending: bool = False
    numbers: tuple[tuple[int, ...], ...] | None = None
    images: tuple[tuple[Image, ...], ...] | None = None
    alive: tuple[tuple[int, ...], ...] | None = None
    attention: dict[tuple[Rows | States, int], Tensor] = field(default_factory=dict)
    memory: dict[str, Any] = field(default_factory=dict)
    replay: bool = False
    embeds: Tensor | None = None
    cut: dict[Any, Any] = field(default_factory=dict)

    @property
    def padded(self) -> bool:
        """Whether the columns that are left hold padding."""
        return self.left is not None and self.sequence is not None and self.sequence.padded

    def keep(self, kept: Tensor, counts: tuple[int, ...]) -> Tensor:
        """Drop visual tokens, see `Sequence.keep`; returns where among the columns at hand those that stay are."""
        assert self.sequence is not None
        self.sequence, index = self.sequence.keep(kept, counts)
        self.left = self.sequence.origin
        self.cut.clear()
        return index

    def once(self, name: Hashable, given: tuple[Any, ...], make: Callable[[], Any]) -> Any:
        """What `make()` returns, made once for all layers that are given the same objects."""
        slot = (name, *map(id, given))
        if slot not in self.cut:
            self.cut[slot] = make(), given  # kept alive, so that their ids stay theirs
        return self.cut[slot][0]

    def dropped(self, device: torch.device) -> Tensor:
        """Visual tokens dropped from each row so far, [batch, 1]."""
        assert self.sent is not None
        assert self.sequence is not None
        gone = [before - now for before, now in zip(self.sent.counts, self.sequence.visual, strict=True)]
        return torch.tensor(gone, device=device)[:, None]

    def gaps(self) -> Tensor:
        """Visual tokens dropped before each column that is left, [batch, left]."""
        assert self.sequence is not None
        origin = self.sequence.origin
        ahead = origin - torch.arange(origin.shape[1], device=origin.device)
        return (ahead - ahead[:, -1:] + self.dropped(origin.device)).clamp(min=0)


def merge(hidden: Tensor, columns: Tensor, selection: Selection, index: Tensor, left: Sequence) -> Tensor:
    """Gather the columns that are left, visual ones merged as the selection says."""
    means = merged(gather(hidden, columns), selection)
    places, real = (each.to(hidden.device) for each in left.visual_columns)
    shorter = gather(hidden, index)
    places = torch.where(real, places, shorter.shape[1])[..., None].expand(-1, -1, shorter.shape[-1])
    return torch.nn.functional.pad(shorter, (0, 0, 0, 1)).scatter(1, places, means)[:, :-1]


def text_columns(sequence: Sequence) -> tuple[Tensor, Tensor]:
    """Columns of the text tokens in order, and which entries are real, each [batch, max(other)]."""
    return first_columns((sequence.origin >= 0) & (sequence.ordinal < 0), max(sequence.other))


def text_rows(rows: Rows, sequence: Sequence, sent: Sent) -> tuple[Tensor, Tensor]:
    """Columns of the query tokens that `rows` names, and which of them are real, each [batch, rows].

    Raises:
        NeedsError: a sample has no text after its last visual token.
    """
    if rows.queries == "image":
        return sequence.visual_columns
    if rows.queries == "last":
        return last_columns(sequence.origin >= 0, 1)
    after = [count if visual else 1 for count, visual in zip(sent.after, sent.counts, strict=True)]
    if min(after) < 1:
        raise NeedsError(
            f"Attention rows {rows.queries!r} are those of the text after the image, but row {after.index(0)} ends"
            " with the image; use queries='last', or put the question after the image."
        )
    width = max(after)
    index, _ = last_columns((sequence.origin >= 0) & (sequence.ordinal < 0), width)
    cue = rows.cue if rows.queries == "instruction" else 0
    ends = [width - (min(cue, count - 1)) for count in after]
    place = torch.arange(width, device=index.device)
    bounds = torch.tensor([[width - count, end] for count, end in zip(after, ends, strict=True)], device=index.device)
    return index, (place >= bounds[:, :1]) & (place < bounds[:, 1:])
