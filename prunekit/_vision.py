"""The vision encoder's half of a session: attention taps and pruning between encoder layers.

The model reads the encoder's hidden states itself and expects all patches there. So a pruned encoder layer gets the
patches that are left, and its output is written back over a full-length copy of its input. What was dropped leaves
for good at the language model's input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.adapter import ModelAdapter
from prunekit.attention import attention_rows, tap
from prunekit.errors import NeedsError, PolicyError
from prunekit.masks import cut_mask
from prunekit.plan import Stage
from prunekit.sequence import Sequence, gather
from prunekit.tokens import Keys, Rows, Selection, VisualTokens
from prunekit.trace import cost_scope

__all__ = ["Layers", "Pruned", "Select", "VisionSide", "pick", "pick_keys", "spread", "take"]

Layers = dict[tuple[str, Rows | Keys], int]
"""Which layer each row set, and the keys, of each stage (by site) are read from."""

Select = Callable[[Stage, VisualTokens], tuple[Selection, tuple[int, ...]]]


@dataclass(frozen=True)
class Pruned:
    """What a stage inside the encoder decided: patch numbers kept per image and the scores by patch number."""

    stage: Stage
    kept: Tensor
    scores: Tensor | None


@dataclass
class _Run:
    """One run of the encoder over a batch of images."""

    images: int
    sequence: Sequence  # of columns [prefix tokens, patches], one row per image
    attention: dict[tuple[Rows | Keys, int], Tensor] = field(default_factory=dict)  # [images, ..., patches]
    pruned: list[Pruned] = field(default_factory=list)
    full: Tensor | None = None  # the full-length input of the layer that is running
    output: Tensor | None = None


class VisionSide:
    """Hooks of the vision encoder."""

    def __init__(self, adapter: ModelAdapter, stages: dict[int, Stage], layers: Layers, select: Select) -> None:
        self.adapter, self.stages, self.layers, self.select = adapter, stages, layers, select
        self.taps: dict[int, set[Rows | Keys]] = {}
        for (_, rows), layer in layers.items():
            if rows.of_vision:
                self.taps.setdefault(layer, set()).add(rows)
        self.run: _Run | None = None
        self.memory: dict[str, object] = {}

    def attach(self) -> list[Any]:
        handles: list[Any] = []
        if not self.stages and not self.taps:
            return handles
        tower, layers = self.adapter.vision_tower, self.adapter.vision_layers
        handles.append(layers[0].register_forward_pre_hook(self._start))
        handles.append(tower.register_forward_hook(self._end))
        for index, wanted in self.taps.items():
            handles += tap(self.adapter.attention(layers[index]), self._observer(index, wanted))
        first = min(self.stages, default=len(layers))
        for index in range(first, len(layers)):
            if index > first:
                handles.append(layers[index].register_forward_pre_hook(self._shorten, with_kwargs=True))
            handles.append(layers[index].register_forward_hook(self._after(index), prepend=True))
        return handles

    def forget(self) -> None:
        """Drop what was read: the features that follow come from somewhere else."""
        self.run = None

    def attention(self, rows: Rows | Keys, layer: int) -> Tensor:
        """Tapped rows of the last run, [images, ..., patches].

        Raises:
            NeedsError: the encoder did not run inside the session on these inputs.
        """
        if self.run is None:
            raise NeedsError(
                f"Attention rows {rows.queries!r} of the vision encoder are needed, but it did not run inside this"
                " session: pass pixel_values instead of features computed elsewhere."
            )
        return self.run.attention[rows, layer]

    def produced(self, output: Any) -> bool:
        """Whether `output` is what the encoder's last run in this session returned."""
        return self.run is not None and getattr(output, "last_hidden_state", None) is self.run.output

    # --- hooks -------------------------------------------------------------------------------------------------------

    def _start(self, module: nn.Module, args: Any) -> None:
        hidden = args[0]
        images, length = int(hidden.shape[0]), int(hidden.shape[1])
        prefix, patches = self.adapter.prefix_tokens, self.adapter.tokens_per_image
        if length != prefix + patches:
            raise NeedsError(
                f"The vision encoder runs on {length} tokens an image; {type(self.adapter.model).__name__} was"
                f" expected to run on {prefix + patches} (images of another resolution are not supported by policies"
                " that read the"
                " encoder)."
            )
        every = torch.ones(images, length, dtype=torch.bool, device=hidden.device)
        patch = (torch.arange(length, device=hidden.device) >= prefix).expand(images, -1)
        self.run = _Run(images, Sequence.of(patch, every, (patches,) * images, (prefix,) * images))
        self.memory = {}

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        if self.run is not None:
            self.run.output = getattr(output, "last_hidden_state", None)

    def _observer(self, layer: int, wanted: set[Rows | Keys]) -> Callable[..., None]:
        def observe(
            module: nn.Module, query: Tensor, key: Tensor, mask: Any, scaling: Any = None, **kwargs: Any
        ) -> None:
            run = self.run
            assert run is not None
            columns, _ = run.sequence.visual_columns()
            patches = self.adapter.tokens_per_image
            ordinals = run.sequence.ordinal.gather(1, columns)
            for rows in wanted:
                if isinstance(rows, Keys):
                    run.attention[rows, layer] = spread(gather(key, columns, 2).transpose(-1, -2), ordinals, patches)
                    continue
                index = columns if rows.queries == "visual" else torch.zeros_like(columns[:, :1])
                with cost_scope(f"scorer.vision.{layer}"):
                    seen = attention_rows(
                        module, query, key, mask, index, torch.ones_like(index, dtype=torch.bool), columns,
                        scaling=scaling, mean=rows.reduce == "mean",
                    )  # fmt: skip
                run.attention[rows, layer] = spread(seen, ordinals, patches)

        return observe

    def _shorten(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        run = self.run
        if run is None or not run.pruned:
            return None
        run.full = args[0]
        index = run.sequence.origin
        rest = tuple(cut_mask(a, index, index) if isinstance(a, Tensor) else a for a in args[1:])
        if isinstance(kwargs.get("attention_mask"), Tensor):
            kwargs = {**kwargs, "attention_mask": cut_mask(kwargs["attention_mask"], index, index)}
        return (gather(run.full, index), *rest), kwargs

    def _after(self, layer: int) -> Callable[..., Any]:
        stage = self.stages.get(layer)

        def after(module: nn.Module, args: Any, output: Tensor) -> Tensor:
            run = self.run
            assert run is not None
            if run.full is not None:
                index = run.sequence.origin[..., None].expand(-1, -1, output.shape[-1])
                output, run.full = run.full.scatter(1, index, output.to(run.full.dtype)), None
            if stage is not None:
                self._prune(run, stage, output)
            return output

        return after

    def _prune(self, run: _Run, stage: Stage, hidden: Tensor) -> None:
        columns, valid = run.sequence.visual_columns()
        source = run.sequence.ordinal.gather(1, columns)
        patches = self.adapter.tokens_per_image
        tokens = VisualTokens(
            hidden=gather(hidden, run.sequence.origin.gather(1, columns)),
            source=source,
            valid=valid,
            total=(patches,) * run.images,
            counts=run.sequence.visual,
            attention=pick(stage, self.layers, run.attention, lambda full: take(full, source)),
            keys=pick_keys(stage, self.layers, run.attention, lambda full: take(full, source)),
            grid=self.adapter.grid,
            per_image=patches,
            memory=self.memory,
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
        run.sequence, _ = run.sequence.keep(selection.kept, counts)
        scores = None if selection.scores is None else spread(selection.scores.float(), source, patches, torch.nan)
        run.pruned.append(Pruned(stage, source.gather(1, selection.kept), scores))

    # --- for the language model's half --------------------------------------------------------------------------------

    def align(self, per_image: Tensor, visual: tuple[int, ...], fill: float = 0.0) -> Tensor:
        """Turn values per image [images, ..., patches] into values per sample [batch, ..., visual].

        Images come in the order of the samples; `generate` may have repeated every sample (beams) after the encoder
        ran.

        Raises:
            NeedsError: the numbers of images and visual tokens do not fit together.
        """
        images, patches = int(per_image.shape[0]), int(per_image.shape[-1])
        repeats, rest = divmod(sum(visual), images * patches)
        if rest or not repeats or len(visual) % repeats or any(v % patches for v in visual):
            raise NeedsError(
                f"The vision encoder ran on {images} images of {patches} visual tokens, which does not fit the"
                f" {sum(visual)}"
                " visual tokens of this call; run the encoder and the language model in one session, on the same"
                " images."
            )
        starts, position = [], 0
        for count in visual[::repeats]:
            starts += [position] * repeats
            position += count
        device = per_image.device
        index = torch.arange(max(visual), device=device) + torch.tensor(starts, device=device)[:, None]
        valid = torch.arange(max(visual), device=device) < torch.tensor(visual, device=device)[:, None]
        flat = per_image.movedim(-1, 1).flatten(0, 1)  # [images * patches, ...]
        values = flat[index.clamp(max=flat.shape[0] - 1)]  # [batch, visual, ...]
        shape = valid.shape + (1,) * (values.ndim - 2)
        return values.masked_fill(~valid.view(shape), fill).movedim(1, -1)


def spread(values: Tensor, ordinals: Tensor, total: int, fill: float = 0.0) -> Tensor:
    """Put values of the tokens at hand [batch, ..., tokens] at their original numbers: [batch, ..., total]."""
    index = torch.where(ordinals >= 0, ordinals, total)  # padding goes to one column more, cut off again
    index = index.view(index.shape[0], *[1] * (values.ndim - 2), -1).expand(values.shape)
    return values.new_full((*values.shape[:-1], total + 1), fill).scatter(-1, index, values)[..., :total]


def take(full: Tensor, source: Tensor) -> Tensor:
    """The inverse of `spread`: values of the tokens at hand, [batch, ..., tokens], 0 where there is none."""
    index = source.clamp(min=0).view(source.shape[0], *[1] * (full.ndim - 2), -1)
    values = full.gather(-1, index.expand(*full.shape[:-1], source.shape[-1]))
    return values * (source >= 0).view(index.shape)


def pick(
    stage: Stage, layers: Layers, found: dict[tuple[Rows | Keys, int], Tensor], view: Callable[[Tensor], Tensor]
) -> dict[Rows | str, Tensor]:
    """The attention that a stage's policy asked for, under its `Rows` and under the plain name of their queries."""
    result: dict[Rows | str, Tensor] = {}
    for rows in stage.policy.needs.attention:
        result[rows] = result[rows.queries] = view(found[rows, layers[stage.site, rows]])
    return result


def pick_keys(
    stage: Stage, layers: Layers, found: dict[tuple[Rows | Keys, int], Tensor], view: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """The keys that a stage's policy asked for, [batch, key heads, visual, head_dim]."""
    for (site, wanted), layer in layers.items():
        if site == stage.site and isinstance(wanted, Keys):
            return view(found[wanted, layer]).transpose(-1, -2)
    return None
