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
from prunekit._align import Layers, pick, pick_keys, take
from prunekit._encoder import Pruned, Run
from prunekit._placeholders import wrap
from prunekit.attention import attention_rows, tap
from prunekit.errors import NeedsError, PolicyError, UnsupportedInputError
from prunekit.patches import Encoded
from prunekit.plan import Stage
from prunekit.sequence import gather
from prunekit.tokens import Keys, Rows, Selection, VisualTokens
from prunekit.trace import cost_scope

__all__ = ["Select", "VisionSide"]

Select = Callable[[Stage, VisualTokens], tuple[Selection, tuple[int, ...]]]


class VisionSide:
    """Hooks of the vision encoder, and what is known of the images of the latest prompt."""

    def __init__(self, adapter: ModelAdapter, stages: dict[int, Stage], layers: Layers, select: Select) -> None:
        self.adapter, self.stages, self.layers, self.select = adapter, stages, layers, select
        self.taps: dict[int, set[Rows | Keys]] = {}
        for (_, rows), layer in layers.items():
            if rows.of_vision:
                self.taps.setdefault(layer, set()).add(rows)
        self.encoded: dict[str, Encoded] = {}
        self.runs: dict[str, list[Run]] = {}
        self.open: str | None = None  # the kind that is being encoded
        self.done: Callable[[Encoded], None] = lambda encoded: None

    def attach(self, hooks: ExitStack) -> None:
        """Attach everything; `hooks` takes it off again."""
        for kind in ("image", "video"):
            wrap(self.adapter.core, f"get_{kind}_features", functools.partial(self._watched, kind), hooks)
        layers = self.adapter.vision_layers
        if layers is None or not (self.stages or self.taps):
            return
        handles: list[Any] = [layers[0].register_forward_pre_hook(self._start, with_kwargs=True)]
        for index, wanted in self.taps.items():
            handles += tap(self.adapter.vision_attention(layers[index]), self._observer(index, wanted))
        first = min(self.stages, default=len(layers))
        for index in range(first, len(layers)):
            if index > first:
                handles.append(layers[index].register_forward_pre_hook(self._shorten, with_kwargs=True))
            handles.append(layers[index].register_forward_hook(self._after(index), prepend=True))
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
    def memory(self) -> dict[str, object]:
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

    def attention(self, rows: Rows | Keys, layer: int) -> Tensor:
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

    def _observer(self, layer: int, wanted: set[Rows | Keys]) -> Callable[..., None]:
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
                if isinstance(rows, Keys):
                    run.note(rows, layer, gather(key, columns, 2).transpose(-1, -2))
                    continue
                index = columns if rows.queries == "visual" else torch.zeros_like(columns[:, :1])
                with cost_scope(f"scorer.vision.{layer}"):
                    seen = attention_rows(
                        module, query, key, mask, index, torch.ones_like(index, dtype=torch.bool), columns,
                        scaling=scaling, mean=rows.reduce == "mean", segments=segments,
                    )  # fmt: skip
                if run.packed:
                    seen = seen / _visible(mask, segments)  # averaged over the rows of all images; only its own look
                run.note(rows, layer, seen)

        return observe

    def _shorten(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        run = self._run
        return None if run is None or run.left is None else run.shorten(args, kwargs)

    def _after(self, layer: int) -> Callable[..., Any]:
        stage = self.stages.get(layer)

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            run = self._run
            if run is None:
                return output
            hidden = run.restore(output[0] if isinstance(output, tuple) else output)
            if stage is not None:
                self._prune(run, stage, hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return after

    def _prune(self, run: Run, stage: Stage, hidden: Tensor) -> None:
        adapter, encoded = self.adapter, self.encoded[self.open or ""]
        if run.source is None:
            groups = adapter.patches_of_tokens(run.patches, encoded)
            totals = adapter.packed_tokens(encoded) if run.packed else (int(groups.shape[0]),) * run.rows
            run.begin(groups, totals, hidden.device)
        found = {key: run.values(*key) for key in run.found}
        fields = run.tokens(hidden, found, [adapter.grid_of(total) for total in run.totals])
        tokens = VisualTokens(
            **fields,
            attention=pick(stage, self.layers, found, lambda full: take(full, fields["source"])),
            keys=pick_keys(stage, self.layers, found, lambda full: take(full, fields["source"])),
        )
        selection, counts = self.select(stage, tokens)
        if selection.owner is not None:
            raise PolicyError(
                f"Stage({stage.site!r}): merging inside the vision encoder is not supported; use 'input'."
            )
        if not run.packed and min(counts) != max(counts):
            raise PolicyError(
                f"Stage({stage.site!r}): inside the vision encoder every image must keep equally many patches."
            )
        run.keep(stage, selection, counts)


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
