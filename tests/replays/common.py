"""Golden cases, and the visual tokens they are turned into.

Each module beside this one is named after a method and has one function, `replay(case)`: it builds `VisualTokens` from
the case's inputs, asks the method's own policies, and returns a value for every output of the case.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prunekit import Selection, VisualTokens

__all__ = ["Case", "Skip", "fed", "visual"]


@dataclass(frozen=True)
class Case:
    """What an official implementation was given, and what it answered.

    Attributes:
        params: the method's settings.
        inputs: arrays `in_...` as tensors.
        outputs: arrays `out_...`, for the comparison alone.
    """

    name: str
    params: dict[str, Any]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @classmethod
    def load(cls, path: Path) -> Case:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: torch.from_numpy(file[name]) for name in file.files if name != "params"}
            params = json.loads(str(file["params"]))
        inputs = {name: array for name, array in arrays.items() if name.startswith("in_")}
        outputs = {name: array for name, array in arrays.items() if name.startswith("out_")}
        unknown = arrays.keys() - inputs.keys() - outputs.keys()
        assert not unknown, f"{path}: arrays that are neither in_ nor out_: {sorted(unknown)}"
        return cls(path.stem, params, inputs, outputs)

    def __getitem__(self, name: str) -> Tensor:
        return self.inputs[name]


@dataclass(frozen=True)
class Skip:
    """Stands for an output that means nothing here; says why."""

    reason: str


def visual(hidden: Tensor, **fields: Any) -> VisualTokens:
    """The tokens of a site where nothing was pruned before, from their states [batch, visual, dim]."""
    batch, count = hidden.shape[:2]
    source = torch.arange(count).expand(batch, -1)
    defaults: dict[str, Any] = {
        "source": source,
        "valid": torch.ones(batch, count, dtype=torch.bool),
        "total": (count,) * batch,
        "counts": (count,) * batch,
    }
    return VisualTokens(hidden=hidden, **(defaults | fields))


def fed(selection: Selection) -> Tensor:
    """Which token each slot takes where `owner` moves them, [batch, kept]; -1 for none."""
    assert selection.owner is not None
    batch, slots = selection.kept.shape
    place = torch.arange(selection.owner.shape[1]).expand(batch, -1)
    empty = torch.full((batch, slots + 1), -1)  # the last takes what is dropped
    return empty.scatter(1, torch.where(selection.owner >= 0, selection.owner, slots), place)[:, :slots]
