"""What all stages share: logging, checkpoints without pickle, and skipping what is done."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import nn


class Log:
    """Prints progress with elapsed wall and processor time, and keeps the curve of a stage for its record."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.curve: list[dict[str, Any]] = []
        self._wall, self._cpu = time.time(), time.process_time()

    @property
    def wall(self) -> float:
        """Seconds since the stage began."""
        return time.time() - self._wall

    @property
    def cpu(self) -> float:
        """Processor seconds since the stage began."""
        return time.process_time() - self._cpu

    def __call__(self, text: str) -> None:
        print(f"{self.name} [{self.wall:.0f}s wall {self.cpu:.0f}s cpu] {text}", flush=True)

    def point(self, step: int, **values: Any) -> None:
        """Remember development results at a step."""
        self.curve.append({"step": step, **values})
        self(f"step {step}: " + json.dumps(values))


def finished(folder: Path, stage: str) -> bool:
    """Whether a stage has left its record, which it writes last."""
    return (folder / f"{stage}.json").exists()


def record(folder: Path, stage: str) -> dict[str, Any]:
    """The record of a finished stage."""
    loaded: dict[str, Any] = json.loads((folder / f"{stage}.json").read_text())
    return loaded


def restore(folder: Path, stage: str, module: nn.Module) -> None:
    """Load the weights that a finished stage left."""
    module.load_state_dict(load_file(folder / f"{stage}.safetensors"))


def save(folder: Path, name: str, module: nn.Module) -> None:
    """Write weights at once or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{name}.partial"
    save_file({k: v.detach().clone().contiguous() for k, v in module.state_dict().items()}, partial)
    os.replace(partial, folder / f"{name}.safetensors")


def stage(
    folder: Path, name: str, module: nn.Module, label: str, train: Callable[[Log], dict[str, Any]]
) -> dict[str, Any]:
    """Run `train` unless its record is there; afterwards `module` holds its weights either way."""
    if finished(folder, name):
        restore(folder, name, module)
    else:
        log = Log(f"{label} {name}")
        result = train(log)
        save(folder, name, module)
        times = {"wall_seconds": round(log.wall), "cpu_seconds": round(log.cpu)}
        (folder / f"{name}.json").write_text(json.dumps({**result, **times, "curve": log.curve}, indent=1) + "\n")
    return record(folder, name)
