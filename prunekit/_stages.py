"""Running the stages of a plan in the language model: asking policies, and dropping what they drop."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from prunekit._align import Layers, align, pick, pick_keys, spread, take
from prunekit._call import Call, Sent, merge
from prunekit._replay import Replay
from prunekit._vision import Select, VisionSide
from prunekit.errors import UnsupportedInputError
from prunekit.plan import Plan
from prunekit.sequence import first_columns, gather
from prunekit.tokens import Selection, VisualTokens
from prunekit.trace import TraceRecord

__all__ = ["Stages"]


class Stages:
    """The stages of a plan; by layer, those of the language model (0 is the input)."""

    def __init__(self, plan: Plan, layers: Layers, select: Select, record: Callable[[TraceRecord], None]) -> None:
        self.plan, self.layers, self.select, self.record = plan, layers, select, record
        self.by_layer = {stage.where.index: stage for stage in plan.stages if stage.where.part > 0}

    @cached_property
    def first(self) -> int:
        """The first decoder layer that may hold fewer tokens; 0 with stages before the language model."""
        return min(stage.where.index if stage.where.part == 2 else 0 for stage in self.plan.stages)

    def check(self, call: Call) -> None:
        """Raise `BudgetError` where the plan is impossible for a row of this call."""
        assert call.sent is not None
        for count in sorted(set(call.sent.counts)):
            if count:
                self.plan.check(count)

    def leave_out(self, call: Call, sent: Sent, vision: VisionSide) -> None:
        """Drop at the input what stages inside the vision encoder dropped."""
        inside = [stage for stage in self.plan.stages if stage.where.part == 0]
        for number, stage in enumerate(inside):
            pruned, encoded = vision.dropped(number), vision.encoded
            if call.numbers is None:
                raise UnsupportedInputError(
                    f"Stage({stage.site!r}): which images belong to which row cannot be told (images and videos in one"
                    " row); place the stage at 'input'."
                )
            several = max(map(len, call.numbers)) > 1
            if several and stage.keep is not None and stage.keep.tokens is not None and stage.keep.per == "sample":
                raise UnsupportedInputError(
                    f"Stage({stage.site!r}) keeps {stage.keep}, but a sample has several images; inside the vision"
                    " encoder images are pruned one by one: use Keep(ratio=...) or Keep(..., per='image')."
                )
            alive = tuple(tuple(pruned.counts[image] for image in row) for row in call.numbers)
            counts = tuple(map(sum, alive))
            kept, real = first_columns(align(pruned.flags, sent, encoded) > 0, max(counts))
            kept = kept.masked_fill(~real, -1)
            if not call.replay:
                scores = pruned.scores
                aligned = None if scores is None else align(scores, sent, encoded, torch.nan)
                self.record(TraceRecord(stage.site, kept, aligned, sent.counts))
            if number == len(inside) - 1 and counts != sent.counts:
                call.keep(kept, counts)
                call.restored, call.alive = True, alive  # layer 0 is handed all columns

    def run(self, call: Call, layer: int, hidden: Tensor, vision: VisionSide, replay: Replay) -> Tensor:
        """Run the stage before `layer` on the states of the columns that are left; returns those of the kept ones."""
        stage, sequence = self.by_layer[layer], call.sequence
        assert sequence is not None
        assert call.sent is not None
        columns, valid = sequence.visual_columns()
        source = sequence.ordinal.gather(1, columns).masked_fill(~valid, -1).to(hidden.device)
        if call.replay:
            selection, counts = replay.decisions[stage.site]
        else:
            tokens = self._tokens(call, layer, hidden, columns, source, vision)
            selection, counts = self.select(stage, tokens)
            if replay.ids is not None:
                replay.decisions[stage.site] = selection, counts
            self._note(stage.site, call, selection, source)
            call.alive = tokens.left_per_image(stage.keep)
        if counts == sequence.visual and selection.owner is None:
            return hidden  # everything stays: nothing to gather
        index = call.keep(selection.kept, counts)
        if selection.owner is None:
            return gather(hidden, index)
        assert call.sequence is not None
        return merge(hidden, columns, selection, index, call.sequence)

    def _tokens(
        self, call: Call, layer: int, hidden: Tensor, columns: Tensor, source: Tensor, vision: VisionSide
    ) -> VisualTokens:
        stage, sequence, sent = self.by_layer[layer], call.sequence, call.sent
        assert sequence is not None
        assert sent is not None
        found = dict(call.attention)
        for (site, rows), at in self.layers.items():
            if site == stage.site and rows.of_vision:
                found[rows, at] = align(vision.attention(rows, at), sent, vision.encoded)
        text = real = None
        if stage.policy.needs.text:
            text, real = first_columns((sequence.origin >= 0) & (sequence.ordinal < 0), max(sequence.other))
            real = real.to(hidden.device)
        sizes = {image for row in call.images or () for image in row}
        alike = next(iter(sizes)) if len(sizes) == 1 else None
        return VisualTokens(
            hidden=gather(hidden, columns),
            source=source,
            valid=source >= 0,
            total=sent.counts,
            counts=sequence.visual,
            attention=pick(stage, self.layers, found, lambda full: take(full, source)),
            keys=pick_keys(stage, self.layers, found, lambda full: take(full, source)),
            text=None if text is None else gather(hidden, text),
            text_valid=real,
            grid=None if alike is None else alike.grid,
            per_image=None if alike is None else alike.tokens,
            images=call.images,
            alive=call.alive,
            memory=call.memory,
        )

    def _note(self, site: str, call: Call, selection: Selection, source: Tensor) -> None:
        assert call.sent is not None
        kept = source.gather(1, selection.kept.clamp(min=0)).masked_fill(selection.kept < 0, -1)
        scores = selection.scores
        if scores is not None:
            scores = spread(scores.float(), source, max(call.sent.counts), torch.nan)
        self.record(TraceRecord(site, kept, scores, call.sent.counts))
