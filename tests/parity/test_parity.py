"""Our policies on the inputs that official implementations were given: `pytest tests/parity --golden DIR`.

DIR holds `<method>/<case>.npz` as `tests/parity/data` does. Integers and booleans must be equal, floats within 1e-4 of
the largest; every output of every case must be answered. What came of each case is told at the end of the run, and
written to FILE with `--parity-json FILE`, see conftest.py.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from replays.common import Case, Skip

DATA = Path(__file__).parent / "data"
TOLERANCE = 1e-4


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--golden") or DATA)
    found = sorted(folder.rglob("*.npz"))
    if not found:
        raise pytest.UsageError(f"--golden {folder}: no <method>/<case>.npz in it")
    metafunc.parametrize("path", found, ids=[f"{path.parent.name}-{path.stem}" for path in found])


@torch.no_grad()
def test_agrees_with_the_official_implementation(path: Path, record_property: Any) -> None:
    method = path.parent.name
    found = {"method": method, "case": path.stem, "equal": 0, "close": 0, "error": 0.0, "skipped": {}}
    record_property("parity", found)  # and filled from here on
    try:
        module = importlib.import_module(f"replays.{method}")
    except ModuleNotFoundError as error:
        pytest.fail(f"no method {method!r} is known here: {error}")
    case = Case.load(path)
    found |= {name: case.params.get(name, "") for name in ("repo", "commit")}
    unread = Reads(case.inputs)
    answers = module.replay(Case(case.name, case.params, unread, {}))
    missing = case.outputs.keys() - answers.keys()
    assert not missing, f"outputs without an answer: {sorted(missing)}"
    ignored = case.inputs.keys() - unread.read - getattr(module, "UNUSED", frozenset())
    assert not ignored, f"inputs that nobody looked at: {sorted(ignored)}"
    for name, expected in case.outputs.items():
        answer = answers[name]
        if isinstance(answer, Skip):
            found["skipped"][name] = answer.reason
            continue
        error = compare(name, torch.as_tensor(answer), expected)
        found["equal" if error is None else "close"] += 1
        found["error"] = max(found["error"], error or 0.0)


class Reads(dict[str, torch.Tensor]):
    """A mapping that remembers which entries were read."""

    def __init__(self, entries: dict[str, torch.Tensor]) -> None:
        super().__init__(entries)
        self.read: set[str] = set()

    def __getitem__(self, name: str) -> torch.Tensor:
        self.read.add(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self.read.add(name)
        return super().get(name, default)


def compare(name: str, answer: torch.Tensor, expected: torch.Tensor) -> float | None:
    """The largest error of floats, relative to the largest of them and 1; None for the others, which are equal."""
    assert answer.shape == expected.shape, f"{name}: {list(answer.shape)}, official {list(expected.shape)}"
    if expected.is_floating_point():
        scale = max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
        gap = (answer.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
        assert gap <= TOLERANCE * scale, f"{name}: differs by {gap:.2e}"
        return gap / scale
    assert torch.equal(answer.to(expected.dtype), expected), f"{name}: {int((answer != expected).sum())} differ"
    return None
