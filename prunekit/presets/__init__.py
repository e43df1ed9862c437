"""Architectures of released models, as data: `prunekit.cost` lays them out without weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["Preset", "presets"]


@dataclass(frozen=True)
class Preset:
    """One architecture.

    Attributes:
        name: short name.
        hub: the model's name on the Hugging Face hub.
        about: what it is made of.
        source: what confirms the sizes, and which of them nothing does.
        parameters: published number of parameters, in billions.
        image: what the processor does with images: `default` (height and width) and limits on the size.
        config: what `config.json` says of shapes; `model_type` names the family.
    """

    name: str
    hub: str
    about: str
    source: str
    parameters: float
    image: dict[str, Any]
    config: dict[str, Any]


@cache
def presets() -> dict[str, Preset]:
    """All architectures that come with prunekit, by name."""
    folder = resources.files("prunekit.presets")
    files = sorted((file for file in folder.iterdir() if file.name.endswith(".json")), key=lambda file: file.name)
    found = [Preset(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return {preset.name: preset for preset in found}
