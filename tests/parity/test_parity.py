"""Our policies on the inputs that official implementations were given: `pytest tests/parity --golden DIR`.

DIR holds `<method>/<case>.npz` as `tests/parity/data` does. Integers and booleans must be equal, floats within 1e-4 of
the largest; every output of every case must be answered.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from replays.common import Case, Skip

DATA = Path(__file__).parent / "data"


def cases(folder: Path) -> list[Path]:
    return sorted(folder.glob("*/*.npz"))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    folder = Path(metafunc.config.getoption("--golden") or DATA)
    found = cases(folder)
    if not found:
        raise pytest.UsageError(f"--golden {folder}: no <method>/<case>.npz in it")
    metafunc.parametrize("path", found, ids=[f"{path.parent.name}-{path.stem}" for path in found])


@torch.no_grad()
def test_agrees_with_the_official_implementation(path: Path, record_property: Any) -> None:
    method = path.parent.name
    try:
        module = importlib.import_module(f"replays.{method}")
    except ModuleNotFoundError as error:
        pytest.fail(f"no method {method!r} is known here: {error}")
    case = Case.load(path)
    unread = Reads(case.inputs)
    answers = module.replay(Case(case.name, case.params, unread, {}))
    missing = case.outputs.keys() - answers.keys()
    assert not missing, f"outputs without an answer: {sorted(missing)}"
    ignored = case.inputs.keys() - unread.read - getattr(module, "UNUSED", frozenset())
    assert not ignored, f"inputs that nobody looked at: {sorted(ignored)}"
    for name, expected in case.outputs.items():
        answer = answers[name]
        if not isinstance(answer, Skip):
            compare(name, torch.as_tensor(answer), expected)
    record_property("method", method)
    record_property("commit", case.params.get("commit", ""))


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


def compare(name: str, answer: torch.Tensor, expected: torch.Tensor) -> None:
    assert answer.shape == expected.shape, f"{name}: {list(answer.shape)}, official {list(expected.shape)}"
    if expected.is_floating_point():
        scale = max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
        gap = (answer.double() - expected.double()).abs().max().item() if expected.numel() else 0.0
        assert gap <= 1e-4 * scale, f"{name}: differs by {gap:.2e}"
        return
    assert torch.equal(answer.to(expected.dtype), expected), f"{name}: {int((answer != expected).sum())} differ"
