"""The device that is measured: whether it is there, and whether a model fits."""

from __future__ import annotations

from pathlib import Path

import torch

from prunekit.adapter import ModelAdapter
from prunekit.costs.closed_form_text import Decoder
from prunekit.errors import MeasurementError, UnsupportedModelError, nearest

__all__ = ["check_memory", "device_of"]


def device_of(name: str) -> torch.device:
    """A device that is there.

    Raises:
        MeasurementError: it is not.
    """
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    except RuntimeError:
        raise MeasurementError(
            f"device: there is no {name!r}; allowed are auto, cpu, cuda and cuda:<i>.{nearest(name, ['cpu', 'cuda'])}"
        ) from None
    there = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= there:
        raise MeasurementError(f"device: {name!r} is not on this machine, which has {there} CUDA devices.")
    return device


def check_memory(adapter: ModelAdapter, dtype: torch.dtype, device: torch.device, batch: int, length: int) -> None:
    """Refuse what cannot fit, before it is built: weights, and the KV cache of the dense model.

    Raises:
        MeasurementError: the device has less memory than that; the message has both numbers.
    """
    values = sum(weight.numel() for weight in adapter.model.parameters())
    weights, cache = values * dtype.itemsize, 0
    try:
        shapes = Decoder.of(adapter.text_config)
        cache = batch * sum(shapes.cache_bytes([length] * adapter.depth, value_bytes=dtype.itemsize))
    except UnsupportedModelError:
        pass  # the weights alone, then
    free = _free(device)
    if free is not None and weights + cache > free:
        smaller = "" if dtype.itemsize < 4 else " --dtype bfloat16 halves it."
        need, have, kind = (weights + cache) / 2**30, free / 2**30, str(dtype).removeprefix("torch.")
        raise MeasurementError(
            f"memory: {values / 1e9:.1f} billion weights in {kind} and the KV cache at batch size {batch} need at least"
            f" {need:.1f} GiB; free on {device} are {have:.1f} GiB.{smaller}"
        )


def _free(device: torch.device) -> int | None:
    """Bytes that can be had, None where that is not known."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    info = Path("/proc/meminfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    found = [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    most, used = (Path("/sys/fs/cgroup") / name for name in ("memory.max", "memory.current"))
    if found and most.exists() and most.read_text().strip().isdigit():
        found.append(int(most.read_text()) - int(used.read_text()))
    return min(found, default=None)
