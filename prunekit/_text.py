"""The language model's half of a session: pruning at its input and between decoder layers, in prefill and decode.

One path serves every call. A call brings new columns; a call with visual tokens is pruned, and each layer's cache
remembers which columns it holds (`PrunedLayer`), so that the masks of later calls can be cut to them.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit._call import Call, Sent, compose, merge, text_rows
from prunekit._decoder import Decoder
from prunekit._replay import Replay
from prunekit._vision import Layers, Select, VisionSide, pick, pick_keys, spread, take
from prunekit.adapter import ModelAdapter
from prunekit.attention import attention_rows, tap
from prunekit.cache import PrunedLayer, cache_layer
from prunekit.errors import NeedsError, PruningWarning, UnsupportedInputError
from prunekit.plan import Plan
from prunekit.sequence import Sequence, first_columns, gather
from prunekit.tokens import Keys, Rows, Selection, VisualTokens
from prunekit.trace import TraceRecord, cost_scope

__all__ = ["TextSide"]


class TextSide:
    """Hooks of the multimodal core and of the language model."""

    def __init__(
        self,
        adapter: ModelAdapter,
        plan: Plan,
        layers: Layers,
        vision: VisionSide,
        select: Select,
        record: Callable[[TraceRecord], None],
        compact: bool,
    ) -> None:
        self.adapter, self.plan, self.layers, self.vision = adapter, plan, layers, vision
        self.select, self.record, self.decoder = select, record, Decoder(adapter, compact)
        self.stages = {stage.where.index: stage for stage in plan.stages if stage.where.part > 0}  # 0 is the input
        self.call: Call | None = None
        self.sent: Sent | None = None
        self.replay = Replay()
        self.warned = False

    def attach(self) -> list[Any]:
        adapter, layers = self.adapter, self.adapter.decoder_layers
        handles: list[Any] = [
            adapter.core.register_forward_pre_hook(self._core, with_kwargs=True),
            adapter.text_model.register_forward_pre_hook(self._enter, with_kwargs=True),
            layers[-1].register_forward_hook(self._leave, prepend=True),
        ]
        for index, layer in enumerate(layers):
            handles.append(layer.register_forward_pre_hook(self._before(index), with_kwargs=True))
        taps: dict[int, set[Rows | Keys]] = {}
        for (_, rows), layer_index in self.layers.items():
            if not rows.of_vision:
                taps.setdefault(layer_index, set()).add(rows)
        for layer_index, wanted in taps.items():
            handles += tap(adapter.attention(layers[layer_index]), self._observer(layer_index, wanted))
        return handles

    def release(self) -> None:
        """Let go of all tensors."""
        self.call = self.sent = None
        self.replay.forget()

    # --- the model's entry: what was sent ----------------------------------------------------------------------------

    def _core(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            kwargs = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
        kwargs = self._new_columns(kwargs)
        encoded = (kwargs.get("mm_encoder_outputs") or {}).get("image")
        if encoded is not None and not self.vision.produced(encoded):
            self.vision.forget()
        self.sent = None
        if encoded is not None or kwargs.get("pixel_values") is not None:
            visual = self.adapter.visual_mask(kwargs.get("input_ids"), kwargs.get("inputs_embeds"))
            sent = Sent.read(visual, kwargs.get("attention_mask"), kwargs.get("input_ids"))
            self.adapter.check_visual(sent.counts)
            self.sent = sent if any(sent.counts) else None
        return (), kwargs

    def _new_columns(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Cut off what was seen: `generate` on a pruned cache counts its keys, and sends too many tokens again."""
        cache, ids = kwargs.get("past_key_values"), kwargs.get("input_ids")
        first = cache_layer(cache, 0)
        if ids is None or ids.shape[1] == 1 or not isinstance(first, PrunedLayer) or not first.seen:
            return kwargs
        mask, positions = kwargs.get("attention_mask"), kwargs.get("position_ids")
        if mask is None and positions is None:
            return kwargs
        total = int(mask.shape[-1] if mask is not None else positions.max() + 1)  # type: ignore[union-attr]
        new = total - first.seen
        if new < 1:
            raise UnsupportedInputError(
                f"The KV cache has seen {first.seen} tokens, but the inputs describe only {total}."
            )
        if new < ids.shape[1]:
            kwargs["input_ids"] = ids[:, -new:]
            if positions is not None:
                kwargs["position_ids"] = positions[..., -new:]
        return kwargs

    # --- the language model's entry ----------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        embeds, cache = kwargs.get("inputs_embeds"), kwargs.get("past_key_values")
        if embeds is None:  # the language model alone, on token ids
            self.call = None
            return None
        first = cache_layer(cache, 0)
        base = cache.get_seq_length() if cache is not None else 0
        seen = first.seen if isinstance(first, PrunedLayer) else base
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(seen, seen + embeds.shape[1], device=embeds.device)[None]
        call = self.call = Call(embeds.shape[1], base, positions, self.sent)
        self.sent = None
        if call.sent is None:
            if not base and not self.warned:
                self.warned = True
                warnings.warn(
                    "A prompt without images runs dense: there are no visual tokens to prune.", PruningWarning, 2
                )
        else:
            embeds = self._prune_entry(call, call.sent, embeds, kwargs)
        if call.entry is None and not isinstance(first, PrunedLayer):
            return None
        return args, self.decoder.enter(call, cache, kwargs, embeds)

    def _prune_entry(self, call: Call, sent: Sent, embeds: Tensor, kwargs: dict[str, Any]) -> Tensor:
        for count in sorted(set(sent.counts)):
            if count:
                self.plan.check(count)
        call.sequence = Sequence.of(sent.visual, sent.tokens, sent.counts, sent.others)
        if kwargs.get("past_key_values") is not None or kwargs.get("use_cache", self.decoder.config.use_cache):
            self.replay.forget()
        else:
            columns, valid = call.sequence.visual_columns()
            call.replay = self.replay.begins(sent.ids, gather(embeds, columns) * valid[..., None])
        if self.vision.run is not None:
            call.memory = dict(self.vision.memory)
            self._leave_out(call, sent)
        elif any(stage.where.part == 0 for stage in self.plan.stages):
            raise NeedsError(
                "A stage inside the vision encoder cannot prune features that come from elsewhere: run the encoder"
                " inside this session (pass pixel_values), or place the stage at 'input'."
            )
        hidden = embeds if call.entry is None else gather(embeds, call.entry)
        if 0 in self.stages:
            hidden = self._stage(call, 0, hidden)
            call.entry, call.index = compose(call.entry, call.index), None
        return hidden

    def _leave_out(self, call: Call, sent: Sent) -> None:
        """Drop at the input what stages inside the vision encoder dropped."""
        assert self.vision.run is not None
        assert call.sequence is not None
        for pruned in self.vision.run.pruned:
            flags = spread(
                torch.ones_like(pruned.kept, dtype=torch.float32), pruned.kept, self.adapter.tokens_per_image
            )
            flags = self.vision.align(flags, sent.counts) > 0
            counts = tuple(count // self.adapter.tokens_per_image * pruned.kept.shape[1] for count in sent.counts)
            if (
                pruned.stage.keep is not None
                and pruned.stage.keep.tokens is not None
                and max(counts) > pruned.kept.shape[1]
            ):
                raise UnsupportedInputError(
                    f"Stage({pruned.stage.site!r}) keeps {pruned.stage.keep}, but a sample has several images;"
                    " inside the vision encoder images are pruned one by one: use Keep(ratio=...)."
                )
            kept, real = first_columns(flags, max(counts))
            kept = kept.masked_fill(~real, -1)
            if not call.replay:
                scores = pruned.scores
                scores = scores if scores is None else self.vision.align(scores, sent.counts, torch.nan)
                self.record(TraceRecord(pruned.stage.site, kept, scores, sent.counts))
        if self.vision.run.pruned and counts != call.sequence.visual:
            call.sequence, call.entry = call.sequence.keep(kept, counts)

    # --- stages ------------------------------------------------------------------------------------------------------

    def _stage(self, call: Call, layer: int, hidden: Tensor) -> Tensor:
        """Run the stage before `layer` on the states of the columns that are left; returns those of the kept ones."""
        stage, sequence = self.stages[layer], call.sequence
        assert sequence is not None
        assert call.sent is not None
        columns, valid = sequence.visual_columns()
        source = sequence.ordinal.gather(1, columns).masked_fill(~valid, -1)
        if call.replay:
            selection, counts = self.replay.decisions[stage.site]
        else:
            visual = self.vision
            found = dict(call.attention)
            for (site, rows), at in self.layers.items():
                if site == stage.site and rows.of_vision:
                    found[rows, at] = visual.align(visual.attention(rows, at), call.sent.counts)
            text, real = first_columns((sequence.origin >= 0) & (sequence.ordinal < 0), max(sequence.other))
            tokens = VisualTokens(
                hidden=gather(hidden, columns),
                source=source,
                valid=valid,
                total=call.sent.counts,
                counts=sequence.visual,
                attention=pick(stage, self.layers, found, lambda full: take(full, source)),
                keys=pick_keys(stage, self.layers, found, lambda full: take(full, source)),
                text=gather(hidden, text) if stage.policy.needs.text else None,
                text_valid=real if stage.policy.needs.text else None,
                grid=self.adapter.grid,
                per_image=self.adapter.tokens_per_image,
                memory=call.memory,
            )
            selection, counts = self.select(stage, tokens)
            if self.replay.ids is not None:
                self.replay.decisions[stage.site] = selection, counts
            self._note(stage.site, call, selection, source)
        if counts == sequence.visual and selection.owner is None:
            return hidden  # everything stays: nothing to gather
        call.sequence, index = sequence.keep(selection.kept, counts)
        call.index = compose(call.index, index)
        call.cut.clear()
        hidden = (
            gather(hidden, index)
            if selection.owner is None
            else merge(hidden, columns, selection, index, call.sequence)
        )
        return hidden

    def _note(self, site: str, call: Call, selection: Selection, source: Tensor) -> None:
        assert call.sent is not None
        kept = source.gather(1, selection.kept.clamp(min=0)).masked_fill(selection.kept < 0, -1)
        scores = selection.scores
        if scores is not None:
            scores = spread(scores.float(), source, max(call.sent.counts), torch.nan)
        self.record(TraceRecord(site, kept, scores, call.sent.counts))

    # --- decoder layers ----------------------------------------------------------------------------------------------

    def _before(self, layer: int) -> Callable[..., Any]:
        def before(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
            call = self.call
            if call is None:
                return None
            if layer == 0:
                self.decoder.expect_entry(call, kwargs.get("past_key_values"))
                return None
            hidden = args[0]
            if layer in self.stages and call.sequence is not None:
                hidden = self._stage(call, layer, hidden)
            changed = self.decoder.cut(call, layer, hidden, kwargs)
            return None if changed is None else ((hidden, *args[1:]), changed)

        return before

    def _leave(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        call, self.call = self.call, None
        return output if call is None else self.decoder.restore(call, output)

    # --- attention ---------------------------------------------------------------------------------------------------

    def _observer(self, layer: int, wanted: set[Rows | Keys]) -> Callable[..., None]:
        def observe(module: nn.Module, query: Tensor, key: Tensor, mask: Any, **kwargs: Any) -> None:
            call = self.call
            if call is None or call.sequence is None or call.sent is None or call.replay:
                return
            columns, valid = call.sequence.visual_columns()
            ordinals = call.sequence.ordinal.gather(1, columns).masked_fill(~valid, -1)
            cached = key.shape[2] - query.shape[2]
            for rows in wanted:
                if isinstance(rows, Keys):
                    states = gather(key, columns + cached, 2).transpose(-1, -2)
                    call.attention[rows, layer] = spread(states, ordinals, max(call.sent.counts))
                    continue
                index, real = text_rows(rows, call.sequence, call.sent)
                with cost_scope(f"scorer.decoder.{layer}"):
                    seen = attention_rows(
                        module, query, key, mask, index, real, columns + cached,
                        scaling=kwargs.get("scaling"), softcap=kwargs.get("softcap"), mean=rows.reduce == "mean",
                    )  # fmt: skip
                call.attention[rows, layer] = spread(seen, ordinals, max(call.sent.counts))

        return observe
