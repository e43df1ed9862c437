"""Cost of every cell, measured on the same samples: prefill time in turns, and operations by part."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor

from prunekit.evaluation.answering import Positions, session_of
from prunekit.evaluation.cells import Cell

__all__ = ["count_operations", "time_prefill"]

ROUNDS = 3


@torch.inference_mode()
def time_prefill(
    model: Any, cells: Sequence[Cell], samples: Sequence[Mapping[str, Tensor]], positions: Positions
) -> list[float | None]:
    """Median prefill time of each cell in milliseconds, at the batch size of the samples; None if not reachable.

    Cells take turns on every sample, so that whatever else the machine does meets all of them alike. The first round
    warms up and does not count. The session is opened outside the time, as it is opened once for many prompts.
    """
    times: list[list[float]] = [[] for _ in cells]
    for round_ in range(ROUNDS + 1):
        for inputs in samples[: 1 if round_ == 0 else None]:
            for cell, taken in zip(cells, times, strict=True):
                if cell.stages is None:
                    continue
                with session_of(model, cell.stages, positions):
                    _wait(model)
                    start = time.perf_counter()
                    model(**inputs, logits_to_keep=1)
                    _wait(model)
                    taken.append(1000 * (time.perf_counter() - start))
    return [median(taken[1:]) if taken else None for taken in times]


def count_operations(model: Any, cells: Sequence[Cell], inputs: Mapping[str, Tensor]) -> list[dict[str, Any] | None]:
    """Multiply-adds of one prefill by part, and FLOPs (twice their sum), for each cell; None if not reachable."""
    from prunekit import flops

    costs: list[dict[str, Any] | None] = []
    for cell in cells:
        if cell.stages is None:
            costs.append(None)
            continue
        cost = flops.count(model, dict(inputs), cell.stages or None)
        costs.append({"macs": dict(cost.macs), "flops": cost.flops, "uncounted": dict(cost.uncounted)})
    return costs


def _wait(model: Any) -> None:
    """Let a GPU finish what it was given, so that clocks read what they should."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
