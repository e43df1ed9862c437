"""Running the stages of a plan inside the vision encoder: asking policies, and dropping what they drop.

The model reads the encoder's hidden states itself and expects all patches there. So a pruned encoder layer gets the
patches that are left, and its output is written back over a full-length copy of its input. What was dropped leaves for
good at the language model's input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit._adapter import ModelAdapter
from prunekit._align import Layers, pick, pick_states, side_inputs, take
from prunekit._encoder import Run
from prunekit.errors import UnsupportedInputError
from prunekit.needs import Rows, States
from prunekit.plan import Site, Stage
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens
from prunekit.trace import cost_scope

__all__ = ["EncoderStages", "Select"]

CONNECTOR = Site.parse("connector")
Select = Callable[[Stage, VisualTokens], tuple[Selection, tuple[int, ...]]]


class EncoderStages:
    """The stages between encoder layers, and the one at the connector.

    Attributes:
        by_layer: the stage after each layer; that at the connector under `CONNECTOR.index`.
        running: the run that is going on, None outside the model's methods for features.
    """

    def __init__(
        self,
        adapter: ModelAdapter,
        plan: tuple[Stage, ...],
        layers: Layers,
        select: Select,
        side: dict[str, Tensor],
        running: Callable[[], Run | None],
    ) -> None:
        self.adapter, self.layers, self.select, self.side, self.running = adapter, layers, select, side, running
        self.by_layer = {stage.where.index: stage for stage in plan if stage.where.part == 0}

    def attach(self, layers: Any) -> list[Any]:
        """Attach hooks to the encoder's layers and to the projector; returns their handles."""
        handles: list[Any] = []
        if CONNECTOR.index in self.by_layer:
            projector = self.adapter.projector
            assert projector is not None  # check_site has seen to it
            handles.append(projector.register_forward_pre_hook(self._connector, with_kwargs=True))
        first = min(self.by_layer, default=len(layers))
        for index in range(first, len(layers)):  # none where the only stage is at the connector
            if index > first:
                handles.append(layers[index].register_forward_pre_hook(self._shorten, with_kwargs=True))
            handles.append(layers[index].register_forward_hook(self._after(index), prepend=True))
        return handles

    def _connector(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        run = self.running()
        if run is None:
            return None
        name, hidden = next(iter([*enumerate(args), *kwargs.items()]))
        adapter, encoded = self.adapter, run.encoded
        groups = adapter.patches_of_tokens(run.patches, encoded)
        if hidden.ndim != 3 or len(hidden) != run.rows or hidden.shape[1] not in (run.patches, len(groups)):
            raise UnsupportedInputError(
                f"The projector of {type(adapter.model).__name__} is given features {list(hidden.shape)}, not"
                f" [images, {run.patches} patches, dim]; place the stage at 'vision.{adapter.feature_layer}'."
            )
        single = torch.arange(len(groups), device=hidden.device)[:, None]
        columns = single if len(groups) == hidden.shape[1] else None
        hidden = self._prune(run, self.by_layer[CONNECTOR.index], hidden, columns, 0)
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, name: hidden}

    def _shorten(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
        run = self.running()
        if run is None or run.shorter is None:
            return None
        if run.shorter.mask is not None and not self.adapter.masked_encoder:
            raise UnsupportedInputError(
                f"{type(module).__name__} takes no attention mask, so that the images of a batch must keep equally many"
                " patches inside this encoder, and all weigh the same; prune at 'input', or one image at a time."
            )
        return run.shorter.cut(args, kwargs)

    def _after(self, layer: int) -> Callable[..., Any]:
        stage = self.by_layer.get(layer)

        def after(module: nn.Module, args: Any, output: Any) -> Any:
            run = self.running()
            if run is None:
                return output
            hidden = output[0] if isinstance(output, tuple) else output
            if run.shorter is not None:
                hidden = run.shorter.restore(hidden)
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
        adapter, encoded = self.adapter, run.encoded
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
            keys=None if stage.needs.keys is None else states[stage.needs.keys],
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
