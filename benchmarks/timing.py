"""Time and memory of several ways to do the same, measured in turns in one process and compared run by run."""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from functools import partial
from statistics import median
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself otherwise

import torch
from torch import nn
from variants import Variant

from prunekit.provenance import hardware, versions

__all__ = ["Times", "decode_tokens", "keep_freed_memory", "measure", "paired", "peak_memory", "provenance", "timed"]

Times = dict[str, list[float]]

SPAN = "measured"
"""Name of a module's calls in the profiler's records."""


def keep_freed_memory() -> None:
    """Let the C library hold on to what small tensors free, so that each run finds their memory mapped.

    By default glibc hands memory back once enough of it is free at the end of the heap, and every page that is asked
    for again is a page fault. Whether that happens depends on what lies where: equal layers take different times.
    Blocks of 32 MiB and more are mapped anew each time, as they are by default.
    """
    tune = getattr(ctypes.CDLL(None), "mallopt", None)  # there is none outside of glibc
    if tune is not None:
        tune(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
        tune(-3, 2**25)  # M_MMAP_THRESHOLD: as high as glibc itself would raise it


def wait(device: str) -> None:
    """Let a GPU finish, so that clocks read what they should."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def timed(options: argparse.Namespace, action: Callable[[], Any]) -> float:
    """Seconds that `action` takes."""
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    wait(options.device)
    start = clock()
    action()
    wait(options.device)
    return clock() - start


def decode_tokens(way: Variant, steps: int) -> None:
    """Run single tokens, one after the other."""
    for _ in range(steps):
        way.step(way.prompt.token)


def measure(ways: dict[str, Variant], options: argparse.Namespace) -> tuple[Times, Times]:
    """Seconds of each prefill and of each token decoded, all ways in turns; one round more, thrown away, warms up.

    Ways of one plan (`plan.way`), whose times are compared, follow one another, in a new order each round.
    """
    prefill: Times = {name: [] for name in ways}
    decode: Times = {name: [] for name in ways}
    order, chance, steps = list(ways), random.Random(0), options.tokens
    gc.collect()
    gc.disable()
    try:
        for _ in range(options.repeats + 1):
            chance.shuffle(order)
            places = {plan: chance.random() for plan in dict.fromkeys(name.partition(".")[0] for name in order)}
            order.sort(key=lambda name, places=places: places[name.partition(".")[0]])
            for name in order:
                way = ways[name]
                with way.ready():
                    prefill[name].append(timed(options, way.prefill))
                    decode_tokens(way, 1)  # the first one after a prefill pays for cold caches
                    decode[name].append(timed(options, partial(decode_tokens, way, steps)) / steps)
                way.cache = None
            gc.collect()
    finally:
        gc.enable()
    return tuple({name: taken[1:] for name, taken in times.items()} for times in (prefill, decode))  # type: ignore[return-value]


def paired(above: list[float], below: list[float]) -> dict[str, float]:
    """Median of the ratios run by run, and the interval that holds the true median with 95 % confidence."""
    ratios = [a / b for a, b in zip(above, below, strict=True)]
    resample = random.Random(0)
    medians = sorted(median(resample.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"median": median(ratios), "low": medians[49], "high": medians[-50], "pairs": len(ratios)}


def peak_memory(way: Variant, device: str, module: nn.Module | None = None) -> int:
    """Bytes of tensors that a prefill holds at most, beyond weights and inputs; its KV cache included.

    With `module`, the bytes that its calls add at most to what was held before.
    """
    gc.collect()  # what others leave behind is not to be freed while this is counted
    gc.disable()
    try:
        with way.ready():
            peak = _peak_on_gpu(way, device, module) if device.startswith("cuda") else _peak_on_cpu(way, module)
    finally:
        gc.enable()
    way.cache = None
    return peak


def _peak_on_cpu(way: Variant, module: nn.Module | None) -> int:
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as run, _named(module):
        way.prefill()
    events = run.profiler.kineto_results.events()
    spans = [(event.start_ns(), event.end_ns()) for event in events if event.name() == SPAN]
    sizes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    peak = 0
    for start, end in spans if module is not None else [(0, 2**63)]:
        held = 0
        for _, size in (each for each in sizes if start <= each[0] <= end):
            held += size
            peak = max(peak, held)
    return peak


@contextmanager
def _named(module: nn.Module | None) -> Iterator[None]:
    """Give the calls of a module a name in the profiler's records."""
    if module is None:
        yield
        return
    open_spans: list[Any] = []

    def enter(module: nn.Module, args: Any) -> None:
        open_spans.append(torch.profiler.record_function(SPAN))
        open_spans[-1].__enter__()

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        open_spans.pop().__exit__(None, None, None)

    handles = [module.register_forward_pre_hook(enter, prepend=True), module.register_forward_hook(leave)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _peak_on_gpu(way: Variant, device: str, module: nn.Module | None) -> int:
    before = peak = 0
    way.prefill()  # the first one loads kernels
    way.cache = None

    def enter(*_: Any) -> None:
        nonlocal before
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)

    def leave(*_: Any) -> None:
        nonlocal peak
        peak = max(peak, torch.cuda.max_memory_allocated(device) - before)

    if module is None:
        enter()
        way.prefill()
        leave()
        return peak
    handles = [module.register_forward_pre_hook(enter, prepend=True), module.register_forward_hook(leave)]
    try:
        way.prefill()
    finally:
        for handle in handles:
            handle.remove()
    return peak


def provenance(options: argparse.Namespace) -> dict[str, Any]:
    """Where and how this ran."""
    machine, numbers = hardware(torch.device(options.device)), versions()
    found = {"cpu": machine["processor"], "cores": machine["cores"], "load": os.getloadavg()[0]}
    return {
        "config": {name: value for name, value in vars(options).items() if name != "output"},
        "hardware": found | {name: machine[name] for name in ("gpu",) if name in machine},
        "threads": machine["threads"],
        "versions": {name: numbers[name] for name in ("torch", "transformers", "python")},
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
