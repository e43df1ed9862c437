"""Measure a model in all ways, at all batch sizes: the function behind `prunekit bench` and the callback."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from prunekit import flops
from prunekit.adapter import ModelAdapter, adapter_for
from prunekit.errors import MeasurementError
from prunekit.evaluation.cells import Cell
from prunekit.evaluation.experiment import DENSE
from prunekit.latency.profiled import peak_memory, scorer_seconds
from prunekit.latency.protocol import Protocol, batched, run_rounds
from prunekit.latency.result import Benchmark, Row
from prunekit.latency.roofline import bounds, peaks, work
from prunekit.latency.timer import Timer, timer_for
from prunekit.latency.ways import Way
from prunekit.plan import Method, Plan, Stage

__all__ = ["Items", "attention_of", "measure"]

Items = Method | Stage | Sequence[Method | Stage]


def measure(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    methods: Mapping[str, Items] | Sequence[Cell],
    protocol: Protocol | None = None,
    *,
    positions: Literal["original", "compact"] = "original",
    timer: Timer | str = "auto",
    roofline: bool = True,
) -> Benchmark:
    """Time the dense model and methods, on one model, one prompt and one attention implementation, in turns.

    Args:
        model: a supported model, on its device, in evaluation mode; it is left as it was.
        inputs: of one sample, on that device, without padding; larger batches repeat it.
        methods: what to prune with, by name; the dense model is always measured with them.
        protocol: how often, on how many samples and tokens.
        positions: as of `prune`.
        timer: `auto`, `cuda`, `wall`, or one of your own.
        roofline: whether operations, bytes and the device's peaks are measured, too.

    Raises:
        MeasurementError: the device has no such timer, or a method is named `dense`.
        PrunekitError: a method does not fit the model, see `prune`; for the roofline, attention that cannot be counted.
    """
    protocol, adapter = protocol or Protocol(), adapter_for(model)
    device, dtype = _place(model)
    clock = timer_for(device, timer) if isinstance(timer, str) else timer
    cells = _cells(methods, adapter)
    ways = {cell.label: Way(adapter, cell.stages or (), positions) for cell in cells}
    costs = {label: _cost(way, inputs) for label, way in ways.items()} if roofline else {}
    peak = peaks(device, dtype, clock) if roofline else None
    rows, order = [], {}
    for batch in protocol.batch:
        many = batched(inputs, batch)
        unclocked = {label: _unclocked(way, many, device) for label, way in ways.items()}
        rounds = run_rounds(ways, many, protocol, clock)
        order[batch] = rounds.order
        for cell in cells:
            way, cost = ways[cell.label], costs.get(cell.label)
            scorer, memory = unclocked[cell.label]
            row = Row(
                name=cell.name,
                budget=cell.budget,
                batch=batch,
                attention=attention_of(adapter),
                device=str(device),
                dtype=str(dtype).removeprefix("torch."),
                seconds=rounds.seconds[cell.label],
                scorer_seconds=scorer,
                peak_memory=memory,
                decode_tokens=protocol.decode_tokens,
            )
            if cost is not None and peak is not None:
                bound = bounds(work(way, many, cost, batch, protocol.decode_tokens), peak)
                row = replace(row, visual_tokens=cost.visual_tokens_per_layer, bounds=bound)
            rows.append(row)
    setup = {"timer": clock.name, "positions": positions, "protocol": dict(vars(protocol))}
    return Benchmark(rows, setup, peak, order)


def attention_of(adapter: ModelAdapter) -> tuple[str, str]:
    """Attention implementation of the language model, and of the vision encoder (`unknown`: out of reach)."""
    parts: tuple[Any, Any] = (adapter.text_model, adapter.vision_tower)
    text, vision = ("unknown" if part is None else str(part.config._attn_implementation) for part in parts)
    return text, vision


def _place(model: Any) -> tuple[torch.device, torch.dtype]:
    weight = next(model.parameters())
    return weight.device, weight.dtype


def _cells(methods: Mapping[str, Items] | Sequence[Cell], adapter: ModelAdapter) -> list[Cell]:
    """The dense model first, and methods as cells."""
    if not isinstance(methods, Mapping):
        return [cell for cell in methods if cell.stages is not None]
    if DENSE in methods:
        raise MeasurementError(f"methods: the name {DENSE!r} is taken by the baseline, which is always measured.")
    given = {name: [items] if isinstance(items, (Method, Stage)) else list(items) for name, items in methods.items()}
    stages = {name: Plan.of(items, adapter.shape).stages for name, items in given.items()}
    return [Cell(DENSE, None, ()), *(Cell(name, None, each) for name, each in stages.items())]


def _cost(way: Way, inputs: Mapping[str, Tensor]) -> flops.Cost:
    """Operations of one sample."""
    with torch.inference_mode(False):  # what is traced must not be bound to it
        plain = {name: value.clone() for name, value in inputs.items()}
        return flops.count(way.adapter.model, plain, way.stages or None)


@torch.inference_mode()
def _unclocked(way: Way, inputs: Mapping[str, Tensor], device: torch.device) -> tuple[float | None, int]:
    """The scorer's seconds and peak memory, from runs of their own."""
    run: Callable[[], Any] = partial(way.prefill, inputs)
    with way.ready():
        scorer = scorer_seconds(run, device) if way.stages else None
        return scorer, peak_memory(run, device)
