"""Cost of every cell, measured on the same samples: prefill time in turns, and operations by part."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
from torch import Tensor

from prunekit import flops
from prunekit.evaluation.bench import Bench

__all__ = ["ROUNDS", "count_operations", "time_prefill"]

ROUNDS = 3


@torch.inference_mode()
def time_prefill(bench: Bench, samples: list[dict[str, Tensor]]) -> dict[int, float]:
    """Median prefill time of each reachable cell in milliseconds, at the batch size of the samples.

    Cells take turns on every sample, so that whatever else the machine does meets all of them alike. A first round on
    one sample warms up and does not count. The session is opened outside the time, as it is opened once for many
    prompts.
    """
    times: dict[int, list[float]] = {index: [] for index, _, _ in bench.reachable}
    for inputs in [samples[0], *samples * ROUNDS]:
        for index, _, stages in bench.reachable:
            with bench.session(stages):
                _wait(bench.model)
                start = time.perf_counter()
                bench.model(**inputs, logits_to_keep=1)
                _wait(bench.model)
                times[index].append(1000 * (time.perf_counter() - start))
    return {index: median(taken[1:]) for index, taken in times.items()}


def count_operations(bench: Bench, inputs: Mapping[str, Tensor]) -> dict[int, dict[str, Any]]:
    """Multiply-adds of one prefill by part, and FLOPs (twice their sum), for each reachable cell."""
    costs = {i: flops.count(bench.model, dict(inputs), stages or None) for i, _, stages in bench.reachable}
    return {i: {"macs": c.macs, "flops": c.flops, "uncounted": c.uncounted} for i, c in costs.items()}


def _wait(model: Any) -> None:
    """Let a GPU finish what it was given, so that clocks read what they should."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
