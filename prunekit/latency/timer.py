"""Clocks: how long something took on the device that did it."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar, final

import torch

from prunekit.errors import MeasurementError, nearest

__all__ = ["CudaTimer", "Timer", "WallTimer", "timer_for"]


class Timer(ABC):
    """Marks moments, and tells the time between two of them.

    Attributes:
        name: what users call it.
    """

    name: ClassVar[str]

    @abstractmethod
    def mark(self) -> Any:
        """Mark this moment in the device's work."""

    @abstractmethod
    def wait(self) -> None:
        """Let the device finish what it was given; needed before moments are compared."""

    @abstractmethod
    def seconds(self, start: Any, end: Any) -> float:
        """Seconds between two marks."""


@final
class WallTimer(Timer):
    """The monotonic clock of the process; right where calls return when their work is done."""

    name = "wall"

    def mark(self) -> int:
        return time.perf_counter_ns()

    def wait(self) -> None:
        pass

    def seconds(self, start: int, end: int) -> float:
        return (end - start) / 1e9


@final
class CudaTimer(Timer):
    """CUDA events in the current stream: the device's own clock, gaps in which it waits for the host included."""

    name = "cuda"

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        return event

    def wait(self) -> None:
        torch.cuda.synchronize(self._device)

    def seconds(self, start: torch.cuda.Event, end: torch.cuda.Event) -> float:
        return float(start.elapsed_time(end)) / 1000


def timer_for(device: torch.device, name: str = "auto") -> Timer:
    """The timer of a device: CUDA events on a GPU of NVIDIA, the monotonic clock on the CPU.

    Args:
        device: what does the work.
        name: `auto`, or `cuda` or `wall`, which must be the device's.

    Raises:
        MeasurementError: the device has no such timer, or none.
    """
    own = {"cpu": "wall", "cuda": "cuda"}
    if name not in ("auto", *own.values()):
        known = ("auto", *own.values())
        raise MeasurementError(f"timer: there is no {name!r}; allowed are {', '.join(known)}.{nearest(name, known)}")
    if device.type not in own:
        raise MeasurementError(
            f"device: {str(device)!r} has no timer here; devices that can be timed are cpu and cuda."
        )
    if name not in ("auto", own[device.type]):
        why = "CUDA events time CUDA devices alone" if name == "cuda" else "its calls return before their work is done"
        raise MeasurementError(
            f"timer: {name!r} cannot time the device {str(device)!r} ({why}); use {own[device.type]!r} or 'auto'."
        )
    return CudaTimer(device) if device.type == "cuda" else WallTimer()
