"""The state of one forward pass of the language model, and the small computations on it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import NeedsError
from prunekit.sequence import Sequence, gather, last_columns
from prunekit.tokens import Keys, Rows, Selection

__all__ = ["Call", "Sent", "compose", "merge", "text_rows"]


@dataclass
class Sent:
    """What the caller sent, read at the model's entry.

    Attributes:
        visual: columns of visual tokens, [batch, length].
        tokens: columns that are no padding, [batch, length].
        counts: visual tokens of each row.
        others: other tokens of each row.
        after: text tokens after the last visual one, of each row.
        ids: token ids, [batch, length], or None.
    """

    visual: Tensor
    tokens: Tensor
    counts: tuple[int, ...]
    others: tuple[int, ...]
    after: tuple[int, ...]
    ids: Tensor | None

    @classmethod
    def read(cls, visual: Tensor, mask: Tensor | None, ids: Tensor | None) -> Sent:
        length = visual.shape[1]
        tokens = torch.ones_like(visual) if mask is None or mask.ndim != 2 else mask[:, -length:].to(visual.device) != 0
        visual = visual & tokens
        columns = torch.arange(length, device=visual.device)
        last = torch.where(visual, columns, -1).amax(1, keepdim=True)
        text = tokens & ~visual
        sums = torch.stack([visual.sum(1), text.sum(1), (text & (columns > last)).sum(1)])
        counts, others, after = sums.tolist()  # the one host read of a prefill: all later shapes follow from it
        return cls(visual, tokens, tuple(counts), tuple(others), tuple(after), ids)


@dataclass
class Call:
    """One forward pass of the language model.

    Attributes:
        length: columns that the caller sent.
        base: keys that layer 0 has cached before.
        positions: original position ids of the sent columns, [batch or 1, length].
        sent: what the caller sent, None for a call without images.
        sequence: the sent columns that are left; None for a call that is not pruned.
        entry: the sent columns that enter layer 0, [batch, entered]; None: all of them.
        index: the entered columns that are left now, [batch, left]; None: all of them.
        attention: tapped rows of the decoder by original visual number, [batch, ..., visual].
        replay: whether the decisions of an earlier call are repeated.
    """

    length: int
    base: int
    positions: Tensor
    sent: Sent | None
    sequence: Sequence | None = None
    entry: Tensor | None = None
    index: Tensor | None = None
    attention: dict[tuple[Rows | Keys, int], Tensor] = field(default_factory=dict)
    memory: dict[str, object] = field(default_factory=dict)
    replay: bool = False
    cut: dict[Any, Any] = field(default_factory=dict)

    @property
    def entered(self) -> int:
        """Number of columns that enter layer 0."""
        return self.length if self.entry is None else int(self.entry.shape[1])

    def padded(self, pruned: Tensor | None) -> bool:
        """Whether columns that were gathered (`pruned` is not None) hold padding."""
        return pruned is not None and self.sequence is not None and self.sequence.padded

    def once(self, name: str, value: Any, key: Any, change: Callable[[Any], Any]) -> Any:
        """`change(value)`, computed once for all layers that are handed the same objects `value` and `key`."""
        slot = (name, id(value), id(key))
        if slot not in self.cut:
            self.cut[slot] = change(value), value, key  # both kept alive, so that their ids stay theirs
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


def compose(first: Tensor | None, then: Tensor | None) -> Tensor | None:
    """One index for two gathers in a row; None takes everything, -1 is padding."""
    if first is None or then is None:
        return then if first is None else first
    return first.gather(1, then.clamp(min=0)).masked_fill(then < 0, -1)


def merge(hidden: Tensor, columns: Tensor, selection: Selection, index: Tensor, left: Sequence) -> Tensor:
    """Gather the columns that are left, visual ones as the weighted average of the tokens they own."""
    assert selection.owner is not None
    kept = selection.kept.shape[1]
    owner = torch.where(selection.owner >= 0, selection.owner, kept)
    weight = torch.ones_like(owner, dtype=torch.float32) if selection.weight is None else selection.weight.float()
    weight = weight.masked_fill(selection.owner < 0, 0.0)
    tokens = gather(hidden, columns).float() * weight[..., None]
    sums = tokens.new_zeros(tokens.shape[0], kept + 1, tokens.shape[-1])
    sums = sums.scatter_add(1, owner[..., None].expand_as(tokens), tokens)[:, :kept]
    total = weight.new_zeros(weight.shape[0], kept + 1).scatter_add(1, owner, weight)[:, :kept, None]
    means = (sums / total.clamp(min=torch.finfo(total.dtype).tiny)).to(hidden.dtype)
    places, real = left.visual_columns()
    shorter = gather(hidden, index)
    places = torch.where(real, places, shorter.shape[1])[..., None].expand(-1, -1, shorter.shape[-1])
    return torch.nn.functional.pad(shorter, (0, 0, 0, 1)).scatter(1, places, means)[:, :-1]


def text_rows(rows: Rows, sequence: Sequence, sent: Sent) -> tuple[Tensor, Tensor]:
    """Columns of the query tokens that `rows` names, and which of them are real, each [batch, rows].

    Raises:
        NeedsError: a sample has no text after its last visual token.
    """
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
