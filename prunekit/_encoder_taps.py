"""Reading a vision encoder while it runs: attention rows and states of its layers, noted in the run going on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prunekit._adapter import ModelAdapter
from prunekit._align import Layers
from prunekit._encoder import Run
from prunekit.attention import attention_rows, tap
from prunekit.needs import Rows, States
from prunekit.sequence import gather
from prunekit.trace import cost_scope

__all__ = ["EncoderTaps"]


class EncoderTaps:
    """What the policies of a plan read of the encoder's layers.

    Attributes:
        wanted: row sets and states by layer.
        running: the run that is going on, None outside the model's methods for features.
    """

    def __init__(self, adapter: ModelAdapter, layers: Layers, running: Callable[[], Run | None]) -> None:
        self.adapter, self.running = adapter, running
        self.wanted: dict[int, set[Rows | States]] = {}
        for (_, rows), layer in layers.items():
            if rows.of_vision and layer >= 0:
                self.wanted.setdefault(layer, set()).add(rows)

    def attach(self, layers: Any) -> list[Any]:
        """Attach hooks to the encoder's layers, after those of stages; returns their handles."""
        handles: list[Any] = []
        for index, wanted in self.wanted.items():
            states = [each for each in wanted if isinstance(each, States) and each.kind == "hidden"]
            if len(states) < len(wanted):
                handles += tap(self.adapter.vision_attention(layers[index]), self._observer(index, wanted))
            if states:  # before what a stage does behind this layer
                handles.append(layers[index].register_forward_hook(self._states_of(index, states), prepend=True))
        return handles

    def _observer(self, layer: int, wanted: set[Rows | States]) -> Callable[..., None]:
        def observe(
            module: nn.Module, query: Tensor, key: Tensor, mask: Any, scaling: Any = None, **kwargs: Any
        ) -> None:
            run = self.running()
            if run is None:
                return
            numbers = torch.arange(key.shape[2], device=key.device)
            columns = numbers[run.prefix :].expand(key.shape[0], -1)
            bounds = kwargs.get("cu_seq_lens_q")  # FlashAttention takes all images of a packed encoder in one call
            segments = None if bounds is None else torch.bucketize(numbers, bounds[1:].to(key.device), right=True)
            for rows in wanted:
                if isinstance(rows, States):
                    if rows.kind != "hidden":
                        _note(run, rows, layer, key if rows.kind == "key" else kwargs["value"], columns)
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

    def _states_of(self, layer: int, wanted: list[States]) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            run = self.running()
            if run is None:
                return
            hidden = output[0] if isinstance(output, tuple) else output
            rows = hidden.reshape(run.rows, -1, hidden.shape[-1])
            columns = torch.arange(run.prefix, rows.shape[1], device=rows.device).expand(len(rows), -1)
            for each in wanted:
                _note(run, each, layer, rows, columns)

        return note


def _note(run: Run, wanted: States, layer: int, states: Tensor, columns: Tensor) -> None:
    """Note states [rows, ..., columns, dim] of the patches or of [CLS]."""
    if wanted.of == "cls":
        run.first[wanted, layer] = states[..., :1, :].transpose(-1, -2)
    else:
        run.note(wanted, layer, gather(states, columns, states.ndim - 2).transpose(-1, -2))


def _visible(mask: Any, segments: Tensor | None) -> Tensor | float:
    """The share of rows that may look at each column of several images in one sequence, [1, columns] or 1."""
    if segments is not None:
        return (segments[:, None] == segments).float().mean(0)[None]
    if not isinstance(mask, Tensor):
        return 1.0
    allowed = mask if mask.dtype == torch.bool else mask == 0
    return allowed[:, 0].float().mean(1)
