"""Running the stages of a plan in the language model: asking policies, and dropping what they drop."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from prunekit._align import Layers, align, pick, pick_states, side_inputs, spread, take
from prunekit._call import Call, Sent, merge, text_columns
from prunekit._replay import Replay
from prunekit._vision import Select, VisionSide
from prunekit.adapter import ModelAdapter
from prunekit.errors import NeedsError, UnsupportedInputError
from prunekit.plan import Plan
from prunekit.selection import Selection
from prunekit.sequence import first_columns, gather
from prunekit.tokens import VisualTokens
from prunekit.trace import TraceRecord, cost_scope

__all__ = ["Stages"]


class Stages:
    """The stages of a plan; by layer, those of the language model (0 is the input)."""

    def __init__(
        self,
        plan: Plan,
        adapter: ModelAdapter,
        layers: Layers,
        select: Select,
        record: Callable[[TraceRecord], None],
        side: dict[str, Tensor],
    ) -> None:
        self.plan, self.adapter, self.layers, self.select, self.record = plan, adapter, layers, select, record
        self.side = side
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

    def run(
        self, call: Call, layer: int, hidden: Tensor, vision: VisionSide, replay: Replay, ahead: Callable[[], None]
    ) -> Tensor:
        """Run the stage before `layer` on the states of the columns that are left; returns those of the kept ones.

        Args:
            ahead: reads the attention of `layer` into `call.attention`.
        """
        stage, sequence = self.by_layer[layer], call.sequence
        assert sequence is not None
        assert call.sent is not None
        columns, valid = sequence.visual_columns
        source = sequence.ordinal.gather(1, columns).masked_fill(~valid, -1).to(hidden.device)
        if call.replay:
            selection, counts = replay.decisions[stage.site]
        else:
            if any(rows.ahead for rows in stage.needs.attention):
                ahead()
            tokens = self._tokens(call, layer, hidden, columns, valid, source, vision)
            selection, counts = self.select(stage, tokens)
            if replay.ids is not None:
                replay.decisions[stage.site] = selection, counts
            self._note(stage.site, call, selection, source)
            call.alive = tokens.left_per_image(stage.keep)
        if counts == sequence.visual and not selection.merges:
            return hidden  # everything stays: nothing to gather
        index = call.keep(selection.kept, counts)
        if not selection.merges:
            return gather(hidden, index)
        assert call.sequence is not None
        with cost_scope(f"scorer.{stage.site}"):
            return merge(hidden, columns, selection, index, call.sequence)

    def _tokens(
        self,
        call: Call,
        layer: int,
        hidden: Tensor,
        columns: Tensor,
        valid: Tensor,
        source: Tensor,
        vision: VisionSide,
    ) -> VisualTokens:
        stage, sequence, sent = self.by_layer[layer], call.sequence, call.sent
        assert sequence is not None
        assert sent is not None
        needs, found = stage.needs, dict(call.attention)
        for (site, rows), at in self.layers.items():
            if site == stage.site and rows.of_vision:
                found[rows, at] = align(vision.attention(rows, at), sent, vision.encoded)
        visual = gather(hidden, columns)
        states = pick_states(stage, self.layers, found, lambda full: take(full, source))
        origin = sequence.origin.gather(1, columns)
        fields: dict[str, Any] = {}
        if needs.of_text:
            text, real = text_columns(sequence)
            seen = (sequence.ordinal >= 0).long().cumsum(1)  # visual tokens up to each column
            fields = {
                "text": gather(hidden, text),
                "text_valid": real,
                "question": (seen.gather(1, text) == seen[:, -1:]) & real,
                "text_positions": (sequence.origin.gather(1, text) + call.base).masked_fill(~real, -1),
            }
        for wanted in needs.states:
            if wanted.kind == "normed":
                norm = self.adapter.final_norm
                states[wanted] = norm(visual if wanted.of == "visual" else fields["text"])
            elif wanted.kind == "embedding":
                if call.embeds is None:
                    raise NeedsError(
                        f"{type(stage.policy).__name__} at {stage.site!r} reads the embeddings that enter the language"
                        f" model; that of {type(self.adapter.model).__name__} is given token ids and makes them itself."
                    )
                if wanted.of == "visual" and any(each.late for each in vision.encoded.values()):
                    raise NeedsError(
                        f"{type(stage.policy).__name__} at {stage.site!r} reads the embeddings of visual tokens;"
                        f" {type(self.adapter.model).__name__} has none: it adds their features between decoder layers."
                    )
                place = origin if wanted.of == "visual" else sequence.origin.gather(1, text)
                states[wanted] = gather(call.embeds, place)
        if needs.patches:
            fields["patches"] = self._patches(call, source, vision)
        sizes = {image for row in call.images or () for image in row}
        alike = next(iter(sizes)) if len(sizes) == 1 else None
        return VisualTokens(
            hidden=visual,
            source=source,
            valid=source >= 0,
            total=sent.counts,
            counts=sequence.visual,
            attention=pick(stage, self.layers, found, lambda full: take(full, source)),
            keys=None if needs.keys is None else states[needs.keys],
            states=states,
            positions=(origin + call.base).masked_fill(~valid, -1),
            side=side_inputs(stage, self.side),
            **{name: value.to(hidden.device) for name, value in fields.items()},
            grid=None if alike is None else alike.grid,
            per_image=None if alike is None else alike.tokens,
            images=call.images,
            alive=call.alive,
            memory=call.memory,
        )

    def _patches(self, call: Call, source: Tensor, vision: VisionSide) -> Tensor:
        """The patch of each visual token at hand, tiles numbered within each row: [batch, visual, 2]."""
        assert call.sent is not None
        found = align(vision.patches().float(), call.sent, vision.encoded, -1.0)  # [batch, 2, visual]
        found = take(found, source).long().transpose(1, 2)
        none = (found[..., :1] < 0) | (source < 0)[..., None]
        first = found[..., :1].masked_fill(none, 2**31).amin(1, keepdim=True)
        start = torch.cat([first, torch.zeros_like(first)], -1)
        return torch.where(none, -1, found - start)

    def _note(self, site: str, call: Call, selection: Selection, source: Tensor) -> None:
        assert call.sent is not None
        kept = source.gather(1, selection.kept.clamp(min=0)).masked_fill(selection.kept < 0, -1)
        scores = selection.scores
        if scores is not None:
            scores = spread(scores.float(), source, max(call.sent.counts), torch.nan)
        self.record(TraceRecord(site, kept, scores, call.sent.counts))
