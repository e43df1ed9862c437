"""The vision encoder's half of a session: attention taps and pruning between encoder layers.

A model turns images into features in one method, `get_image_features` (`get_video_features`); `generate` calls it before
the model's forward. For the session's lifetime it is wrapped, so that what the encoder does is tied to the features that
come out of it.

The model reads the encoder's hidden states itself and expects all patches there. So a pruned encoder layer gets the
patches that are left, and its output is written back over a full-length copy of its input. What was dropped leaves for
good at the language model's input.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunekit._adapter import ModelAdapter
from prunekit._align import Layers, align, pick, pick_keys, spread, take
from prunekit.attention import attention_rows, tap
from prunekit.errors import NeedsError, PolicyError, UnsupportedInputError
from prunekit.masks import cut_mask
from prunekit.patches import Encoded
from prunekit.plan import Stage
from prunekit.sequence import gather, scatter
from prunekit.tokens import Keys, Rows, Selection, VisualTokens
from prunekit.trace import cost_scope

__all__ = ["Pruned", "Select", "VisionSide"]

Select = Callable[[Stage, VisualTokens], tuple[Selection, tuple[int, ...]]]


@dataclass(frozen=True)
class Pruned:
    """What a stage inside the encoder decided: token numbers kept per image and the scores by token number."""

    stage: Stage
    kept: Tensor
    scores: Tensor | None


@dataclass
class _Run:
    """One run of the encoder's layers over a batch of images.

    Attributes:
        images: rows of the batch; 1 where the encoder is packed.
        patches: patches of a row.
        attention: tapped rows, [images, ..., patches]; a packed encoder brings them in chunks.
        left: columns of the encoder that are left, [images, left]; None: all.
        units: numbers of the visual tokens that are left, [images, units].
        groups: patches of each visual token, [tokens, patches of a token].
    """

    images: int
    patches: int
    attention: dict[tuple[Rows | Keys, int], list[Tensor]] = field(default_factory=dict)
    pruned: list[Pruned] = field(default_factory=list)
    left: Tensor | None = None
    units: Tensor | None = None
    groups: Tensor | None = None
    full: Tensor | None = None  # the full-length input of the layer that is running
    memory: dict[str, object] = field(default_factory=dict)


class VisionSide:
    """Hooks of the vision encoder, and what is known of the images of the latest prompt."""

    def __init__(self, adapter: ModelAdapter, stages: dict[int, Stage], layers: Layers, select: Select) -> None:
        self.adapter, self.stages, self.layers, self.select = adapter, stages, layers, select
        self.taps: dict[int, set[Rows | Keys]] = {}
        for (_, rows), layer in layers.items():
            if rows.of_vision:
                self.taps.setdefault(layer, set()).add(rows)
        self.encoded: dict[str, Encoded] = {}
        self.runs: dict[str, list[_Run]] = {}
        self.open: str | None = None  # the kind that is being encoded
        self.done: Callable[[Encoded], None] = lambda encoded: None

    def attach(self, hooks: ExitStack) -> None:
        """Attach everything; `hooks` takes it off again."""
        core: Any = self.adapter.core
        for kind in ("image", "video"):
            name = f"get_{kind}_features"
            if hasattr(core, name):
                hooks.callback(_put_back, core, name, core.__dict__.get(name))
                setattr(core, name, self._watched(kind, getattr(core, name)))
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

    def attention(self, rows: Rows | Keys, layer: int) -> Tensor:
        """Tapped rows by visual token, images before videos: [tokens of all images, ...].

        Raises:
            NeedsError: the encoder did not run inside the session on these inputs.
        """
        kinds = [(each, self.runs.get(kind) or []) for kind, each in sorted(self.encoded.items())]
        if not kinds or any(not run.attention.get((rows, layer)) for _, runs in kinds for run in runs or [_Run(0, 0)]):
            raise NeedsError(
                f"Attention rows {rows.queries!r} of the vision encoder are needed, but it did not run inside this"
                " session: pass pixel_values instead of features computed elsewhere."
            )
        return torch.cat(
            [
                self._to_tokens(torch.cat([torch.cat(run.attention[rows, layer], -1) for run in runs]), encoded)
                for encoded, runs in kinds
            ]
        )

    def _to_tokens(self, values: Tensor, encoded: Encoded) -> Tensor:
        """Values by patch [images, ..., patches] by visual token: [tokens, ...]."""
        shape = values.shape[1:-1]
        flat = self.adapter.to_tokens(values.reshape(values.shape[0], -1, values.shape[-1]), encoded)
        if flat.shape[0] != encoded.total:
            raise NeedsError(
                f"{type(self.adapter).__name__} maps the encoder's patches to {flat.shape[0]} visual tokens, but"
                f" {encoded.total} came out of it."
            )
        return flat.view(flat.shape[0], *shape)

    def dropped(self, kind: str) -> list[tuple[Stage, Tensor, Tensor | None, int, int]]:
        """For each stage inside the encoder: which tokens it kept [tokens] and their scores, kept and all per image."""
        result = []
        runs = self.runs.get(kind, [])
        for number in range(len(runs[0].pruned) if runs else 0):
            flags, scores = [], []
            for run in runs:
                stage, kept, score = run.pruned[number].stage, run.pruned[number].kept, run.pruned[number].scores
                assert run.groups is not None
                total = run.groups.shape[0]
                flags.append(spread(torch.ones_like(kept, dtype=torch.float32), kept, total).flatten())
                scores.append(score)
            joined = None if scores[0] is None else torch.cat([each.flatten() for each in scores if each is not None])
            result.append((stage, torch.cat(flags), joined, int(kept.shape[1]), total))
        return result

    # --- hooks -------------------------------------------------------------------------------------------------------

    def _watched(self, kind: str, method: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(method)

        @functools.wraps(method)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.open is not None:  # videos are often encoded as images
                return method(*args, **kwargs)
            self.open, self.runs[kind] = kind, []
            encoded = self.encoded[kind] = Encoded(kind, dict(signature.bind(*args, **kwargs).arguments))
            try:
                encoded.output = output = method(*args, **kwargs)
            finally:
                self.open = None
            features = _features(output)
            encoded.tokens = None if features is None else self.adapter.image_tokens(features, encoded.inputs)
            size = features.shape[:-1].numel() if isinstance(features, Tensor) else 0
            encoded.total = size if encoded.tokens is None else sum(encoded.tokens)
            self.done(encoded)
            return output

        return watched

    def _start(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.open is None:
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        if self.adapter.packed:
            run = _Run(1, int(hidden.shape[:-1].numel()))
        else:
            run = _Run(int(hidden.shape[0]), int(hidden.shape[1]) - self.adapter.prefix_tokens)
        self.runs[self.open].append(run)

    @property
    def _run(self) -> _Run | None:
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
            prefix, length = self.adapter.prefix_tokens, key.shape[2]
            columns = torch.arange(prefix, length, device=key.device).expand(key.shape[0], -1)
            for rows in wanted:
                if isinstance(rows, Keys):
                    seen = gather(key, columns, 2).transpose(-1, -2)
                else:
                    index = columns if rows.queries == "visual" else torch.zeros_like(columns[:, :1])
                    with cost_scope(f"scorer.vision.{layer}"):
                        seen = attention_rows(
                            module, query, key, mask, index, torch.ones_like(index, dtype=torch.bool), columns,
                            scaling=scaling, mean=rows.reduce == "mean",
                        )  # fmt: skip
                    if self.adapter.packed and isinstance(mask, Tensor):
                        seen = seen / _visible(mask)  # averaged over the rows of all images; only its own can look at it
                if run.left is not None:
                    seen = spread(seen, run.left[:, prefix:] - prefix, run.patches)
                run.attention.setdefault((rows, layer), []).append(seen)

        return observe

    def _shorten(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        run = self._run
        if run is None or run.left is None:
            return None
        run.full, *rest = args
        index = run.left
        mask = kwargs.get("attention_mask", rest[0] if rest else None)
        if mask is not None:
            mask = cut_mask(mask, index, index)
            kwargs = {**kwargs, "attention_mask": mask} if "attention_mask" in kwargs else kwargs
            rest = [mask, *rest[1:]] if rest else rest
        assert run.full is not None
        return (gather(run.full, index), *rest), kwargs

    def _after(self, layer: int) -> Callable[..., Any]:
        stage = self.stages.get(layer)

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            run = self._run
            if run is None:
                return output
            hidden = output[0] if isinstance(output, tuple) else output
            if run.full is not None:
                assert run.left is not None
                hidden, run.full = scatter(hidden, run.left, run.full.shape[1], run.full.to(hidden.dtype)), None
            if stage is not None:
                self._prune(run, stage, hidden)
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return after

    def _prune(self, run: _Run, stage: Stage, hidden: Tensor) -> None:
        prefix = self.adapter.prefix_tokens
        if run.groups is None:
            encoded = self.encoded[self.open or ""]
            run.groups = self.adapter.patches_of_tokens(run.patches, encoded).to(hidden.device)
            run.units = torch.arange(run.groups.shape[0], device=hidden.device).expand(run.images, -1)
        groups, source = run.groups, run.units
        assert source is not None
        patches = groups[source]  # [images, units, patches of a token]
        states = gather(hidden, patches.flatten(1) + prefix).unflatten(1, patches.shape[1:])
        values = {
            key: torch.cat(found, -1)[..., groups].mean(-1) for key, found in run.attention.items()
        }  # [images, ..., tokens]
        total = groups.shape[0]
        tokens = VisualTokens(
            hidden=states.mean(2),
            source=source,
            valid=torch.ones_like(source, dtype=torch.bool),
            total=(total,) * run.images,
            counts=(int(source.shape[1]),) * run.images,
            attention=pick(stage, self.layers, values, lambda full: take(full, source)),
            keys=pick_keys(stage, self.layers, values, lambda full: take(full, source)),
            grid=self.adapter.grid_of(total),
            per_image=total,
            memory=run.memory,
        )
        selection, counts = self.select(stage, tokens)
        if selection.owner is not None:
            raise PolicyError(
                f"Stage({stage.site!r}): merging inside the vision encoder is not supported; use 'input'."
            )
        if min(counts) != max(counts):
            raise PolicyError(
                f"Stage({stage.site!r}): inside the vision encoder every image must keep equally many patches."
            )
        scores = None if selection.scores is None else spread(selection.scores.float(), source, total, torch.nan)
        run.units = source.gather(1, selection.kept)
        run.pruned.append(Pruned(stage, run.units, scores))
        columns = (groups[run.units].flatten(1) + prefix).sort(1).values
        first = torch.arange(prefix, device=hidden.device).expand(run.images, -1)
        run.left = torch.cat([first, columns], 1) if columns.shape[1] < run.patches else None


def _visible(mask: Tensor) -> Tensor:
    """The share of rows that may look at each column, [1, columns], from the mask of several images in one sequence."""
    allowed = mask if mask.dtype == torch.bool else mask == 0
    return allowed[:, 0].float().mean(1)


def _features(output: Any) -> Any:
    """The visual tokens in what a model's method returned: a tensor or one tensor an image."""
    for name in ("pooler_output", "last_hidden_state"):
        if getattr(output, name, None) is not None:
            return getattr(output, name)
    return output if isinstance(output, (Tensor, tuple, list)) else None


def _put_back(module: nn.Module, name: str, before: Any) -> None:
    if before is None:
        delattr(module, name)
    else:
        setattr(module, name, before)
