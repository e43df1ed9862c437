"""Kept tokens drawn on the image, one picture per sample: a row for each method, a column for each budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from prunekit.evaluation import formats
from prunekit.evaluation.bench import Bench
from prunekit.evaluation.cells import Amount
from prunekit.evaluation.experiment import DENSE
from prunekit.evaluation.task import Sample

__all__ = ["Overlay", "collect_overlays", "draw_overlays"]

LEGEND = "full colour: kept\npale: kept by an early stage\nwhite: dropped at once"
RIGHT, WRONG = "#00664f", "#b34700"


@dataclass(frozen=True, eq=False)
class Overlay:
    """What one cell kept of one sample.

    Attributes:
        left: for each visual token the number of stages it survived.
        stages: number of stages.
    """

    name: str
    budget: Amount
    prediction: str
    correct: bool
    left: NDArray[np.int64]
    stages: int


def collect_overlays(bench: Bench, numbers: Sequence[int]) -> list[tuple[Sample, NDArray[np.float64], list[Overlay]]]:
    """Samples with one image, that image as the model sees it, and what each reachable cell kept of it."""
    found = []
    for number in numbers:
        sample, inputs = bench.single(number)
        pixels = inputs["pixel_values"]
        if pixels.ndim != 4 or len(pixels) != 1:
            continue
        (visual,) = bench.visual_tokens(inputs)
        overlays = []
        for _, cell, stages in bench.reachable:
            (text,), trace = bench.answer(inputs, stages)
            left = np.zeros(visual, np.int64)
            for record in trace:
                left[_indices(record.kept)] += 1
            right = bench.task.correct(text, sample.answer)
            overlays.append(Overlay(cell.name, cell.budget, text, right, left, len(stages)))
        found.append((sample, _picture(pixels[0], bench.processor), overlays))
    return found


def _indices(kept: Tensor) -> NDArray[np.int64]:
    row = kept[0].cpu().numpy()
    return np.asarray(row[row >= 0], np.int64)


def _picture(pixels: Tensor, processor: Any) -> NDArray[np.float64]:
    """The image as the model sees it, [rows, columns, 3] in 0 to 1, cropped and resized: patches lie where they are."""
    channels = pixels.float().cpu().numpy().transpose(1, 2, 0)
    mean, std = (np.asarray(getattr(processor.image_processor, f"image_{name}")) for name in ("mean", "std"))
    return np.asarray(np.clip(channels * std + mean, 0, 1), np.float64)


def draw_overlays(
    found: Sequence[tuple[Sample, NDArray[np.float64], list[Overlay]]], grid: tuple[int, int], folder: Path
) -> list[Path]:
    """Write one picture per sample, and say where."""
    folder.mkdir(exist_ok=True)
    paths = []
    for number, (sample, picture, overlays) in enumerate(found):
        paths.append(folder / f"{number:02d}-{_file_name(sample.id)}.png")
        _figure(sample, picture, overlays, grid).savefig(paths[-1])
    return paths


def _file_name(text: str) -> str:
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in text)[:80]


def _figure(sample: Sample, picture: NDArray[np.float64], overlays: list[Overlay], grid: tuple[int, int]) -> Figure:
    dense = next(o for o in overlays if o.name == DENSE)
    pruned = [o for o in overlays if o.name != DENSE]
    names, budgets = (list(dict.fromkeys(getattr(o, key) for o in pruned)) for key in ("name", "budget"))
    figure = Figure(
        figsize=(1.75 * (len(budgets) + 1) + 0.6, 1.95 * max(1, len(names)) + 0.9), dpi=130, layout="constrained"
    )
    axes = figure.subplots(max(1, len(names)), len(budgets) + 1, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    axes[0, 0].axis("on")
    _frame(axes[0, 0], picture, dense)
    axes[0, 0].set_title(f"dense: {dense.prediction}", fontsize=9, color=RIGHT if dense.correct else WRONG)
    if len(names) > 1:
        axes[1, 0].text(
            0.5, 1, LEGEND, fontsize=8, color="#5b6570", ha="center", va="top", transform=axes[1, 0].transAxes
        )
    for overlay in pruned:
        axis = axes[names.index(overlay.name), budgets.index(overlay.budget) + 1]
        axis.axis("on")
        _frame(axis, _faded(picture, overlay, grid), overlay)
        mark = "✓" if overlay.correct else "✗"
        kept = int((overlay.left == overlay.stages).sum())
        axis.set_title(
            f"{mark} {overlay.prediction}  ({kept} kept)", fontsize=8, color=RIGHT if overlay.correct else WRONG
        )
    for row, name in enumerate(names):
        figure_label = axes[row, 1] if len(budgets) else axes[row, 0]
        figure_label.set_ylabel(name, fontsize=10)
        figure_label.axis("on")
    figure.suptitle(f"{sample.question}   answer: {sample.answer}", fontsize=11, color=formats.BLACK)
    for column, budget in enumerate(budgets):
        axes[-1, column + 1].set_xlabel(formats.budget_label(budget) or "as configured", fontsize=9)
    return figure


def _frame(axis: Axes, picture: NDArray[np.float64], overlay: Overlay) -> None:
    axis.imshow(picture, interpolation="nearest")
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_color(RIGHT if overlay.correct else WRONG)
        spine.set_linewidth(1.6)


def _faded(picture: NDArray[np.float64], overlay: Overlay, grid: tuple[int, int]) -> NDArray[np.float64]:
    """Full colour where a token stays to the end, paler the earlier it goes."""
    share = (overlay.left / max(1, overlay.stages)).reshape(grid)
    rows, columns = (np.arange(size) * cells // size for size, cells in zip(picture.shape[:2], grid, strict=True))
    strength = 0.12 + 0.88 * share[rows[:, None], columns[None, :]] ** 1.5
    paper = np.array([1.0, 1.0, 1.0])
    return np.asarray(picture * strength[..., None] + paper * (1 - strength[..., None]))
