"""Where a result comes from: versions and machine. Everything that stores results describes them by these functions."""

from __future__ import annotations

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import prunekit

__all__ = ["hardware", "versions"]

PACKAGES = ("torch", "transformers", "pytorch-lightning", "torchmetrics", "numpy", "pillow", "fvcore")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    return {
        "prunekit": prunekit.__version__,
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"


def hardware(device: torch.device) -> dict[str, Any]:
    """The machine, and what the model ran on.

    Args:
        device: of the model.

    Returns:
        `device`, `processor`, `cores`, `threads` of torch, `memory_gib` (None where it is not known), `system`, and
        `gpu` where the device is one.
    """
    found = {
        "device": str(device),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory() -> float | None:
    if sys.platform != "linux":
        return None
    return float(round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1))
