"""The vision encoder's half of a session: attention taps and pruning between encoder layers.

A model turns images into features in one method, `get_image_features` (`get_video_features`); `generate` calls it
before the model's forward. For the session's lifetime it is wrapped, so that what the encoder does is tied to the
features that come out of it.

The model reads the encoder's hidden states itself and expects all patches there. So a pruned encoder layer gets the
patches that are left, and its output is written back over a full-length copy of its input. What was dropped leaves for
good at the language model's input.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prunekit._adapter import ModelAdapter
from prunekit._align import Layers, pick, pick_states, side_inputs, take
from prunekit._encoder import Pruned, Run
from prunekit._placeholders import wrap
from prunekit.attention import attention_rows, tap
from prunekit.errors import NeedsError, UnsupportedInputError
from prunekit.needs import Rows, States
from prunekit.patches import Encoded
from prunekit.plan import Site, Stage
from prunekit.selection import Selection
from prunekit.sequence import gather
from prunekit.tokens import VisualTokens
from prunekit.trace import cost_scope

__all__ = ["Select", "VisionSide"]

CONNECTOR = Site.parse("connector")
Select = Callable[[Stage, VisualTokens], tuple[Selection, tuple[int, ...]]]


class VisionSide:
    """Hooks of the vision encoder, and what is known of the images of the latest prompt."""

    def __init__(
        self, adapter: ModelAdapter, plan: tuple[Stage, ...], layers: Layers, select: Select, side: dict[str, Tensor]
    ) -> None:
        self.adapter, self.layers, self.select, self.side = adapter, layers, select, side
        self.stages = {stage.where.index: stage for stage in plan if stage.where.part == 0}
        self.taps: dict[int, set[Rows | States]] = {}
        for (_, rows), layer in layers.items():
            if rows.of_vision and layer >= 0:
                self.taps.setdefault(layer, set()).add(rows)
        self.encoded: dict[str, Encoded] = {}
        self.runs: dict[str, list[Run]] = {}
        self.open: str | None = None  # the kind that is being encoded
        self.patched = any(stage.policy.needs.patches for stage in plan)
        self.done: Callable[[Encoded], None] = lambda encoded: None

    def attach(self, hooks: ExitStack) -> None:
        """Attach everything; `hooks` takes it off again."""
        for kind in ("image", "video"):
            wrap(self.adapter.core, f"get_{kind}_features", functools.partial(self._watched, kind), hooks)
        layers = self.adapter.vision_layers
        if layers is None or not (self.stages or self.taps or self.patched):
            return
        handles: list[Any] = [layers[0].register_forward_pre_hook(self._start, with_kwargs=True)]
        for index, wanted in self.taps.items():
            if any(isinstance(each, Rows) or each.kind != "hidden" for each in wanted):
                handles += tap(self.adapter.vision_attention(layers[index]), self._observer(index, wanted))
        if CONNECTOR.index in self.stages:
            projector = self.adapter.projector
            assert projector is not None  # check_site has seen to it
            handles.append(projector.register_forward_pre_hook(self._connector, with_kwargs=True))
        first = min(self.stages, default=len(layers))
        for index in range(first, len(layers)):  # none where the only stage is at the connector
            if index > first:
                handles.append(layers[index].register_forward_pre_hook(self._shorten, with_kwargs=True))
            handles.append(layers[index].register_forward_hook(self._after(index), prepend=True))
        for index, wanted in self.taps.items():
            states = [each for each in wanted if isinstance(each, States) and each.kind == "hidden"]
            if states:  # before what a stage does behind this layer
                handles.append(layers[index].register_forward_hook(self._states_of(index, states), prepend=True))
        for handle in handles:
            hooks.callback(handle.remove)

    def forget(self) -> None:
        """Drop what is known: the features that follow come from somewhere else."""
        self.encoded, self.runs, self.open = {}, {}, None

    def accept(self, outputs: dict[str, Any]) -> None:
        """Take features that were made before the model's forward; forget what is known if it is not theirs.

        Raises:
            UnsupportedInputError: they are a part of what the encoder made in this session.
        """
        if any(self.encoded[kind].output is not out for kind, out in outputs.items() if kind in self.encoded):
            if not all(each.used for each in self.encoded.values()):
                raise UnsupportedInputError(
                    "The features of an image arrive in parts; images must arrive whole (generate without"
                    " prefill_chunk_size)."
                )
            self.forget()
        elif not outputs or not outputs.keys() <= self.encoded.keys():
            self.forget()
        self.encoded = {kind: each for kind, each in self.encoded.items() if kind in outputs}

    @property
    def memory(self) -> dict[str, Any]:
        """The scratch of the stages inside the encoder."""
        return next((run.memory for runs in self.runs.values() for run in runs), {})

    # --- for the language model's half -------------------------------------------------------------------------------

    def sizes(self, encoded: Encoded) -> tuple[tuple[int, ...] | None, int]:
        """Visual tokens of each image and of all, in features as they are now: `generate` repeats them for beams."""
        features = _features(encoded.output)
        tokens = None if features is None else self.adapter.image_tokens(features, encoded.inputs)
        if tokens is not None:
            return tokens, sum(tokens)
        return None, features.shape[:-1].numel() if isinstance(features, Tensor) else 0

    @property
    def kinds(self) -> list[str]:
        """Kinds of the latest prompt, images before videos."""
        return sorted(self.encoded)

    def attention(self, rows: Rows | States, layer: int) -> Tensor:
        """Tapped rows by visual token, images before videos: [tokens of all images, ...].

        Raises:
            NeedsError: the encoder did not run inside the session on these inputs.
        """
        parts = []
        for kind in self.kinds or [""]:
            runs = self.runs.get(kind, [])
            if not runs or any((rows, layer) not in run.found for run in runs):
                raise NeedsError(
                    f"Attention rows {rows.queries!r} of the vision encoder are needed, but it did not run inside this"
                    " session: pass pixel_values instead of features computed elsewhere."
                )
            values = torch.cat([run.values(rows, layer) for run in runs])
            parts.append(self._to_tokens(values, self.encoded[kind]))
        return torch.cat(parts)

    def patches(self) -> Tensor:
        """The patch of each visual token: [tokens of all images, 2], tile (row of the encoder) and place; -1 if none.

        Raises:
            NeedsError: the encoder did not run inside the session, or tokens are made of several patches.
        """
        parts, tile = [], 0
        for kind in self.kinds or [""]:
            runs = self.runs.get(kind, [])
            if not runs or self.adapter.packed or self.adapter.merge > 1:
                raise NeedsError("The patch of each visual token is read, but tokens of this model have no one patch.")
            rows, patches = sum(run.rows for run in runs), runs[0].patches
            number = torch.arange(tile, tile + rows)[:, None].expand(-1, patches)
            place = torch.arange(patches).expand(rows, -1)
            values = torch.stack([number, place, torch.ones_like(place)], 1).float()
            found = self._to_tokens(values.to(_device(self.encoded[kind].output)), self.encoded[kind]).round().long()
            parts.append(torch.where(found[:, 2:] > 0, found[:, :2], -1))
            tile += rows
        return torch.cat(parts)

    def _to_tokens(self, values: Tensor, encoded: Encoded) -> Tensor:
        """Values by patch [rows, ..., patches] by visual token: [tokens, ...]."""
        shape = values.shape[1:-1]
        flat = self.adapter.to_tokens(values.reshape(values.shape[0], -1, values.shape[-1]), encoded)
        if flat.shape[0] != encoded.total:
            raise NeedsError(
                f"{type(self.adapter).__name__} maps the encoder's patches to {flat.shape[0]} visual tokens, but"
                f" {encoded.total} came out of it."
            )
        return flat.view(flat.shape[0], *shape)

    def dropped(self, number: int) -> Pruned:
        """What the stage of this number inside the encoder decided on all images, images before videos.

        Raises:
            NeedsError: the encoder did not run inside the session on these inputs.
        """
        runs = [run for kind in self.kinds for run in self.runs.get(kind, [])]
        if not runs or any(len(run.pruned) <= number for run in runs):
            raise NeedsError(
                "A stage inside the vision encoder cannot prune features that come from elsewhere: run the encoder"
                " inside this session (pass pixel_values), or place the stage at 'input'."
            )
        found = [run.pruned[number] for run in runs]
        scores = [each.scores for each in found if each.scores is not None]
        counts = tuple(count for each in found for count in each.counts)
        flags = torch.cat([each.flags for each in found]).float()
        return Pruned(found[0].stage, flags, torch.cat(scores) if scores else None, counts)

    # --- hooks -------------------------------------------------------------------------------------------------------

    def _watched(self, kind: str, method: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.open is not None:  # videos are often encoded as images
                return method(*args, **kwargs)
            self.open, self.runs[kind] = kind, []
            encoded = self.encoded[kind] = Encoded(kind, dict(signature.bind(*args, **kwargs).arguments))
            try:
                encoded.output = output = method(*args, **kwargs)
            finally:
                self.open = None
            encoded.tokens, encoded.total = self.sizes(encoded)
            self.done(encoded)
            return output

        return watched

    def _start(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.open is None:
            return
        hidden, adapter = args[0] if args else kwargs["hidden_states"], self.adapter
        rows = 1 if adapter.packed else int(hidden.shape[0])
        patches = hidden.shape[:-1].numel() // rows - adapter.prefix_tokens
        self.runs[self.open].append(Run(adapter.packed, adapter.prefix_tokens, rows, patches))

    @property
    def _run(self) -> Run | None:
        """The run that is going on."""
        runs = self.runs.get(self.open or "")
        return runs[-1] if runs else None

    def _observer(self, layer: int, wanted: set[Rows | States]) -> Callable[..., None]:
        def observe(
            module: nn.Module, query: Tensor, key: Tensor, mask: Any, scaling: Any = None, **kwargs: Any
        ) -> None:
            run = self._run
            if run is None:
                return
            numbers = torch.arange(key.shape[2], device=key.device)
            columns = numbers[run.prefix :].expand(key.shape[0], -1)
            bounds = kwargs.get("cu_seq_lens_q")  # FlashAttention takes all images of a packed encoder in one call
            segments = None if bounds is None else torch.bucketize(numbers, bounds[1:].to(key.device), right=True)
            for rows in wanted:
                if isinstance(rows, States):
                    if rows.kind != "hidden":
                        self._note(run, rows, layer, key if rows.kind == "key" else kwargs["value"], columns)
                    continue
                index = columns if rows.queries == "visual" else torch.zeros_like(columns[:, :1])
                with cost_scope(f"scorer.vision.{layer}"):
                    seen = attention_rows(
                        module, query, key, mask, index, torch.ones_like(index, dtype=torch.bool), columns,
                        scaling=scaling, reduce=rows.reduce, joined=rows.joined, segments=segments,
                    )  # fmt: skip
                if run.packed:
                    seen = seen / _visible(mask, segments)  # averaged over the rows of all images; only its own look
                run.note(rows, layer, seen)

        return observe

    def _note(self, run: Run, wanted: States, layer: int, states: Tensor, columns: Tensor) -> None:
        """Note states [rows, ..., columns, dim] of the patches or of [CLS]."""
        if wanted.of == "cls":
            run.first[wanted, layer] = states[..., :1, :].transpose(-1, -2)
        else:
            run.note(wanted, layer, gather(states, columns, states.ndim - 2).transpose(-1, -2))

    def _states_of(self, layer: int, wanted: list[States]) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            run = self._run
            if run is None:
                return
            hidden = output[0] if isinstance(output, tuple) else output
            rows = hidden.reshape(run.rows, -1, hidden.shape[-1])
            columns = torch.arange(run.prefix, rows.shape[1], device=rows.device).expand(len(rows), -1)
            for each in wanted:
                self._note(run, each, layer, rows, columns)

        return note

    def _connector(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        run = self._run
        if run is None:
            return None
        name, hidden = next(iter([*enumerate(args), *kwargs.items()]))
        adapter, encoded = self.adapter, self.encoded[self.open or ""]
        groups = adapter.patches_of_tokens(run.patches, encoded)
        if hidden.ndim != 3 or len(hidden) != run.rows or hidden.shape[1] not in (run.patches, len(groups)):
            raise UnsupportedInputError(
                f"The projector of {type(adapter.model).__name__} is given features {list(hidden.shape)}, not"
                f" [images, {run.patches} patches, dim]; place the stage at 'vision.{adapter.feature_layer}'."
            )
        single = torch.arange(len(groups), device=hidden.device)[:, None]
        columns = single if len(groups) == hidden.shape[1] else None
        hidden = self._prune(run, self.stages[CONNECTOR.index], hidden, columns, 0)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, name: hidden}

    def _shorten(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        run = self._run
        if run is None or run.left is None:
            return None
        if run.mask is not None and not self.adapter.masked_encoder:
            raise UnsupportedInputError(
                f"{type(module).__name__} takes no attention mask, so that the images of a batch must keep equally many"
                " patches inside this encoder, and all weigh the same; prune at 'input', or one image at a time."
            )
        return run.shorten(args, kwargs)

    def _after(self, layer: int) -> Callable[..., Any]:
        stage = self.stages.get(layer)

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            run = self._run
            if run is None:
                return output
            hidden = run.restore(output[0] if isinstance(output, tuple) else output)
            if stage is not None:
                hidden = self._prune(run, stage, hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return after

    def _prune(
        self, run: Run, stage: Stage, hidden: Tensor, groups: Tensor | None = None, prefix: int | None = None
    ) -> Tensor:
        """Ask a stage's policy about states of all columns; returns them, merged tokens written over.

        Args:
            groups: columns of each token among those of `hidden`, and `prefix` the columns before the first; by default
                those of the encoder.
        """
        adapter, encoded = self.adapter, self.encoded[self.open or ""]
        if run.source is None:
            all_groups = adapter.patches_of_tokens(run.patches, encoded)
            totals = adapter.packed_tokens(encoded) if run.packed else (int(all_groups.shape[0]),) * run.rows
            run.begin(all_groups, totals, hidden.device)
        assert run.groups is not None
        prefix = run.prefix if prefix is None else prefix
        before, index = run.states(hidden, run.groups if groups is None else groups, prefix)
        found: dict[tuple[Rows | States, int], Tensor] = {key: run.values(*key) for key in run.found}
        fields = run.tokens(before, found, [adapter.grid_of(total) for total in run.totals])
        states = pick_states(stage, self.layers, found | run.first, lambda full: take(full, fields["source"]))
        tokens = VisualTokens(
            **fields,
            attention=pick(stage, self.layers, found, lambda full: take(full, fields["source"])),
            keys=None if stage.policy.needs.keys is None else states[stage.policy.needs.keys],
            states=states,
            prefix=run.prefix,
            side=side_inputs(stage, self.side),
        )
        selection, counts = self.select(stage, tokens)
        if selection.merges:
            with cost_scope(f"scorer.{stage.site}"):
                hidden = run.merge(hidden, before, index, selection)
        run.keep(stage, selection, counts)
        return hidden


def _visible(mask: Any, segments: Tensor | None) -> Tensor | float:
    """The share of rows that may look at each column of several images in one sequence, [1, columns] or 1."""
    if segments is not None:
        return (segments[:, None] == segments).float().mean(0)[None]
    if not isinstance(mask, Tensor):
        return 1.0
    allowed = mask if mask.dtype == torch.bool else mask == 0
    return allowed[:, 0].float().mean(1)


def _features(output: Any) -> Any:
    """The visual tokens in what a model's method returned: a tensor or one tensor an image."""
    for name in ("pooler_output", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output if isinstance(output, (Tensor, tuple, list)) else None


def _device(output: Any) -> torch.device:
    features = _features(output)
    return (features if isinstance(features, Tensor) else features[0]).device
