"""Small experiments for tests: YAML files, runs through the command line, and tasks that misbehave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunekit.cli import main

SMALL: dict[str, Any] = {
    "task": {"class_path": "Scenes", "init_args": {"scenes": 2}},
    "methods": {"Random": "Random"},
    "budgets": [0.25],
    "batch_size": 4,
    "timing_samples": 0,
    "overlay_samples": 0,
    "trainer": {"accelerator": "cpu", "enable_progress_bar": False},
}


def write(path: Path, **changes: Any) -> Path:
    """A YAML file that says SMALL, with changes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({**SMALL, **changes}, sort_keys=False), encoding="utf-8")
    return path


def prunekit(*words: Any) -> int:
    return main([str(word) for word in words])


def refused(capsys: pytest.CaptureFixture[str], *words: Any) -> str:
    """Run the command line, which must refuse, and return the one message it prints."""
    capsys.readouterr()
    assert prunekit(*words) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    assert said.err.startswith("prunekit: ")
    return said.err


def result(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return found


def predictions(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]
