"""What a clock cannot tell, from runs of their own under torch's profiler: the scorer's time, and peak memory."""

from __future__ import annotations

import gc
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch._C._autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

__all__ = ["peak_memory", "scorer_seconds"]

RUNS = 3


def scorer_seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds that policies take in one prefill: the scopes `scorer.*` of `prunekit.trace.cost_scope`.

    On a GPU the kernels started inside these scopes, on the CPU the scopes as a whole. The profiler itself slows small
    operators down, so that this is an upper bound. The median of some runs.
    """
    gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if gpu else [])]
    taken: list[float] = []
    for _ in range(RUNS):
        with profile(activities=activities) as profiler:
            run()
        scopes = [event for event in profiler.events() or () if _outermost_scope(event)]
        taken.append(sum(event.device_time_total if gpu else event.cpu_time_total for event in scopes) / 1e6)
    return median(taken)


def _outermost_scope(event: Any) -> bool:
    """Whether an event of the host is a scorer's scope that is inside no other."""
    if not event.name.startswith("scorer.") or event.device_type != DeviceType.CPU:
        return False
    parent = event.cpu_parent
    while parent is not None:
        if parent.name.startswith("scorer."):
            return False
        parent = parent.cpu_parent
    return True


def peak_memory(run: Callable[[], Any], device: torch.device) -> int:
    """Bytes of tensors that a run holds at most beyond what was there before: weights and inputs are not counted."""
    gc.collect()  # what others left is not to be freed meanwhile
    return _peak_on_gpu(run, device) if device.type == "cuda" else _peak_on_cpu(run)


def _peak_on_gpu(run: Callable[[], Any], device: torch.device) -> int:
    run()  # loads kernels and their workspaces
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return int(torch.cuda.max_memory_allocated(device) - before)


def _peak_on_cpu(run: Callable[[], Any]) -> int:
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        output = run()
    del output
    events: Any = profiler.profiler
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in events.kineto_results.events() if event.name() == "[memory]"
    )
    held = peak = 0
    for _, size in changes:
        held += size
        peak = max(peak, held)
    return peak
