"""One full training of one seed: vision, language, dropout, and the control without dropout."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prunekit.models.tiny.training.data import scene_pool, training_pools
from prunekit.models.tiny.training.language import Features, features, train_language
from prunekit.models.tiny.training.network import build
from prunekit.models.tiny.training.recipe import Recipe
from prunekit.models.tiny.training.run import finished, restore, stage
from prunekit.models.tiny.training.vision import train_vision

STAGES = ("vision", "language", "dropout", "control")


def seed_folder(work: Path, seed: int) -> Path:
    """Where the checkpoints and records of a seed lie."""
    return work / f"seed{seed}"


def train_seed(seed: int, recipe: Recipe, work: Path) -> None:
    """Run the stages that have not left a record yet.  One thread, so that it can be repeated."""
    with _repeatable():
        _train_seed(seed, recipe, work)


@contextmanager
def _repeatable() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)
        torch.set_num_threads(threads)


def _train_seed(seed: int, recipe: Recipe, work: Path) -> None:
    folder, label = seed_folder(work, seed), f"seed {seed}"
    folder.mkdir(parents=True, exist_ok=True)
    if all(finished(folder, name) for name in STAGES):
        return
    plain, crowded = training_pools(recipe, work)
    monitor = scene_pool(recipe.monitor_scenes, "development", recipe.data_seed + 1)
    model = build(seed)
    stage(
        folder,
        "vision",
        model,
        label,
        lambda log: train_vision(model, seed, plain, crowded, monitor, recipe, log),
    )
    train, dev = features(model, plain), features(model, monitor)
    _language(model, seed, train, dev, recipe, folder, label)


def _language(model: Any, seed: int, train: Features, dev: Features, recipe: Recipe, folder: Path, label: str) -> None:
    def learn(name: str, number: int, steps: int, muon: float, *, drop: bool) -> None:
        stage(
            folder,
            name,
            model,
            label,
            lambda log: train_language(
                model, seed, train, dev, recipe, log, stage=number, steps=steps, muon=muon, drop=drop
            ),
        )

    learn("language", 2, recipe.language_steps, recipe.language_muon, drop=False)
    learn("dropout", 3, recipe.dropout_steps, recipe.dropout_muon, drop=True)
    restore(folder, "language", model)
    learn("control", 3, recipe.dropout_steps, recipe.dropout_muon, drop=False)
