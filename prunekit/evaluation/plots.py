"""Accuracy over cost as a picture: visual tokens per layer at the left, operations at the right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from prunekit.evaluation import formats
from prunekit.evaluation.result import MethodResult, Result

__all__ = ["draw_pareto"]

DODGE = 1.012
"""Methods at one budget are drawn beside each other, each shifted by this factor, so that error bars can be read."""


def draw_pareto(result: Result, path: Path) -> None:
    """Write the picture."""
    dense = result.methods[0]
    panels: list[tuple[str, Callable[[MethodResult], float]]] = [
        ("visual tokens per decoder layer (average)", lambda row: row.average_visual_tokens or 0),
    ]
    if dense.total_macs:
        panels.append(("multiply-adds of one prefill", lambda row: row.total_macs or 0))
    figure = Figure(figsize=(6.4 * len(panels), 5.2), dpi=150, layout="constrained")
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (label, cost) in zip(axes, panels, strict=True):
        _panel(axis, result, cost)
        axis.set_xlabel(label)
    axes[0].set_ylabel("accuracy (%)")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 7), frameon=False, fontsize=10)
    figure.suptitle(
        f"{result.task['name']}: {result.task['samples']:,} questions, {result.model['name']}",
        fontsize=12,
        color=formats.BLACK,
    )
    figure.savefig(path)


def _panel(axis: Axes, result: Result, cost: Callable[[MethodResult], float]) -> None:
    dense, lines = result.methods[0], formats.curves(result)
    looks = formats.styles(list(lines))
    assert dense.accuracy is not None
    assert dense.interval is not None
    axis.axhspan(100 * dense.interval[0], 100 * dense.interval[1], color=formats.BLACK, alpha=0.07, lw=0)
    axis.axhline(100 * dense.accuracy, color=formats.BLACK, lw=1.2, ls="--", label="dense")
    for place, (name, rows) in enumerate(lines.items()):
        color, marker, _ = looks[name]
        shift = DODGE ** (place - (len(lines) - 1) / 2)
        low, high = zip(*(_bars(row) for row in rows), strict=True)
        axis.errorbar(
            [cost(row) * shift for row in rows],
            [100 * (row.accuracy or 0) for row in rows],
            yerr=(low, high),
            label=name,
            color=color,
            marker=marker,
            markersize=6,
            lw=1.6,
            elinewidth=1,
            capsize=2.5,
            markeredgecolor="white",
            markeredgewidth=0.6,
        )
    axis.set_xscale("log")
    _ticks(axis, [cost(row) for rows in lines.values() for row in rows] + [cost(dense)])
    axis.grid(alpha=0.25, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def _bars(row: MethodResult) -> tuple[float, float]:
    assert row.interval is not None
    assert row.accuracy is not None
    return 100 * (row.accuracy - row.interval[0]), 100 * (row.interval[1] - row.accuracy)


def _ticks(axis: Axes, values: list[float]) -> None:
    """Ticks at costs that occur, as far as their labels do not touch."""
    axis.xaxis.set_major_locator(FixedLocator(formats.spaced(values, count=9)))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: formats.number(value)))
