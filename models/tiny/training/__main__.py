"""Train the bundled model: `python -m prunekit.models.tiny.training`.

Trains all seeds (two at a time, one thread each), evaluates them, and writes the picked one with its card.
Every finished stage leaves a checkpoint in the work folder and is skipped when the command runs again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunekit.models.tiny.training import card, evaluate
from prunekit.models.tiny.training.data import training_pools
from prunekit.models.tiny.training.export import export, ship
from prunekit.models.tiny.training.network import build
from prunekit.models.tiny.training.recipe import RECIPE, SMOKE, Recipe
from prunekit.models.tiny.training.run import record, restore
from prunekit.models.tiny.training.seeds import STAGES, seed_folder, train_seed
from prunekit.scenes import FAMILIES, SPLITS
from prunekit.scenes.digits import split_indices

SHIPPED = Path(__file__).parents[1] / "llava"
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m prunekit.models.tiny.training", description=__doc__)
    parser.add_argument("--work", type=Path, help="checkpoints and records (runs/tiny)")
    parser.add_argument("--out", type=Path, help="where to write the model (models/tiny/llava)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--workers", type=int, default=2, help="seeds at a time, in a process each if more than 1")
    parser.add_argument("--smoke", action="store_true", help="a few steps on little data, written elsewhere")
    parser.add_argument("--only", type=int, metavar="SEED", help="train one seed in this process, and no more")
    chosen = parser.parse_args(arguments)
    recipe = SMOKE if chosen.smoke else RECIPE
    work = chosen.work or Path("runs/tiny-smoke" if chosen.smoke else "runs/tiny")
    if chosen.only is not None:
        train_seed(chosen.only, recipe, work)
        return
    training_pools(recipe, work)
    if chosen.workers == 1:
        for seed in chosen.seeds:
            train_seed(seed, recipe, work)
    else:
        _train(chosen.seeds, chosen.workers, work, smoke=chosen.smoke)
    finish(chosen.seeds, recipe, work, chosen.out or (work / "llava" if chosen.smoke else SHIPPED))


def _train(seeds: Sequence[int], workers: int, work: Path, *, smoke: bool) -> None:
    command = [sys.executable, "-m", "prunekit.models.tiny.training", "--work", str(work)]
    command += ["--smoke"] if smoke else []
    environment = {**os.environ, **_MALLOC, "OMP_NUM_THREADS": "1"}
    for start in range(0, len(seeds), workers):
        running = [
            subprocess.Popen([*command, "--only", str(seed)], env=environment)
            for seed in seeds[start : start + workers]
        ]
        if sum(process.wait() != 0 for process in running):
            raise SystemExit("a training process failed")


def finish(seeds: Sequence[int], recipe: Recipe, work: Path, out: Path) -> None:
    """Evaluate trained seeds, pick one on the development split, write it and the card."""
    plain, _ = training_pools(recipe, work)
    test, pool, select = (
        evaluate.test_scenes(recipe),
        evaluate.test_pool(recipe),
        evaluate.select_pool(recipe),
    )
    entries: dict[str, dict[str, Any]] = {}
    scores: dict[str, float] = {}
    agreement = []
    for seed in seeds:
        folder = seed_folder(work, seed)
        model = build(seed)
        restore(folder, "dropout", model)
        export(model, folder / "llava")
        development = evaluate.packed(folder / "llava", select)
        correct = evaluate.generated(folder / "llava", test)
        subsets, packed = evaluate.subsets(folder, pool)
        agreement.append(float((packed == correct).mean()))
        scores[str(seed)] = float(development.mean())
        entries[str(seed)] = {
            "stages": {stage: record(folder, stage) for stage in STAGES},
            "development": evaluate.table(development),
            "test": evaluate.table(correct),
            "subsets": subsets,
            "objects_first": evaluate.objects_first(folder, select),
        }
        print(f"seed {seed}: development {development.mean():.4f}, test {correct.mean():.4f}", flush=True)
    picked = max(scores, key=lambda seed: scores[seed])
    source = seed_folder(work, int(picked)) / "llava"
    ship(source, out)
    content = {
        "shipped": int(picked),
        "parameters": sum(p.numel() for p in build(0).parameters()),
        "bytes": (out / "model.safetensors").stat().st_size,
        "recipe": asdict(recipe),
        "families": list(FAMILIES),
        "digit_images": {split: sum(map(len, split_indices(split))) for split in SPLITS},
        "hardware": card.hardware(),
        "packed_agreement": float(np.mean(agreement)),
        "blind": evaluate.blind(source, plain, pool),
        "seeds": entries,
    }
    card.write(content, out)


if __name__ == "__main__":
    torch.set_num_threads(min(2, os.cpu_count() or 1))
    main()
