"""`prunekit flops`: what methods cost on a model, part by part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prunekit.errors import ConfigError
from prunekit.evaluation.bench import Bench
from prunekit.evaluation.cells import Cell, plan_cells
from prunekit.evaluation.config import read_methods
from prunekit.evaluation.experiment import Experiment, ModelSpec
from prunekit.evaluation.formats import millions
from prunekit.evaluation.loading import load_model, load_processor, model_facts
from prunekit.evaluation.measure import count_operations
from prunekit.evaluation.scenes import Scenes

__all__ = ["costs", "show"]

PROMPT_WORDS = 32
"""Length of the text that is read together with one image."""


def costs(path: str, methods: Sequence[str], budget: int | float) -> list[dict[str, Any]]:
    """Multiply-adds of a prefill with one image, for the dense model and each method at a budget.

    Args:
        path: tiny, a local folder, or a hub name.
        methods: as in an experiment, each as YAML text.
        budget: average visual tokens per decoder layer, as a share or a number.
    """
    spec = ModelSpec(path=path)
    experiment = Experiment(methods=read_methods(methods), task=Scenes(scenes=1), model=spec, budgets=[budget])
    facts = model_facts(spec)
    cells = plan_cells(experiment, facts, images=1)
    bench = Bench(load_model(spec), load_processor(spec), experiment.task, cells)
    counted = count_operations(bench, _prompt(bench))
    return [_row(cell, counted[i]) for i, cell, _ in bench.reachable]


def _prompt(bench: Bench) -> dict[str, Any]:
    """One image and some words."""
    from PIL import Image

    text = f"USER: {bench.processor.image_token} {'how ' * PROMPT_WORDS}ASSISTANT:"
    size = int(getattr(bench.model.config.vision_config, "image_size", 336))
    try:
        return dict(bench.processor(images=[Image.new("RGB", (size, size))], text=[text], return_tensors="pt"))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model: its processor refuses one image with text: {error}") from None


def _row(cell: Cell, cost: dict[str, Any]) -> dict[str, Any]:
    return {"name": cell.name, "budget": cell.budget, "total_macs": sum(cost["macs"].values()), **cost}


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    parts = list(rows[0]["macs"])
    table = Table(title=f"Multiply-adds of one prefill: one image, {PROMPT_WORDS} words", header_style="bold")
    table.add_column("method", no_wrap=True)
    for name in [*parts, "total", "of dense"]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        share = f"{100 * row['total_macs'] / rows[0]['total_macs']:.0f} %"
        cells = [millions(row["macs"][part]) or "0" for part in parts]
        table.add_row(row["name"], *cells, millions(row["total_macs"]), share)
    Console().print(table)
