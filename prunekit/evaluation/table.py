"""The result as a table on the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table

from prunekit.evaluation import formats
from prunekit.evaluation.experiment import DENSE
from prunekit.evaluation.result import MethodResult, Result

__all__ = ["table"]

_NARROW = ("budget", "tokens/layer", "last", "accuracy %", "vs dense")
_WIDE = (*_NARROW, "lost", "gained", "MACs", "ms")
WIDE = 132
"""Columns of a terminal from which on everything is shown; the report shows everything in any case."""


def table(result: Result, width: int = WIDE) -> Table:
    """One line per method and budget, a rule between methods."""
    names = _WIDE if width >= WIDE else _NARROW
    explained = (
        "tokens/layer: visual tokens per decoder layer on average · last: after the last stage · [95 % interval]"
    )
    more = " · lost, gained: only dense right, only the method right · ms: prefill at batch size 1"
    shown = Table(
        title=f"{result.task['name']}, {result.task['samples']:,} questions, {result.model['name']}",
        caption=explained + (more if names is _WIDE else ""),
        header_style="bold",
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    shown.add_column("method", no_wrap=True)
    for name in names:
        shown.add_column(name, justify="right", no_wrap=True)
    for row, following in zip(result.methods, [*result.methods[1:], None], strict=True):
        style = "bold" if row.name == DENSE else None
        shown.add_row(
            *_line(row)[: len(names) + 1], style=style, end_section=not following or following.name != row.name
        )
    return shown


def _line(row: MethodResult) -> list[str]:
    if row.accuracy is None:
        return [row.name, formats.budget_label(row.budget), "", "", f"not reachable{_least(row)}"]
    versus = row.versus_dense
    return [
        row.name,
        formats.budget_label(row.budget),
        f"{row.average_visual_tokens:.1f}",
        f"{row.final_visual_tokens:.0f}",
        f"{formats.percent(row.accuracy)} {formats.interval(row.interval)}",
        ""
        if versus is None
        else f"{formats.points(versus.difference)} {formats.interval(versus.interval, signed=True)}",
        "" if versus is None else str(versus.lost),
        "" if versus is None else str(versus.gained),
        formats.millions(row.total_macs),
        "" if row.prefill_ms is None else f"{row.prefill_ms:.1f}",
    ]


def _least(row: MethodResult) -> str:
    """What the reason says about the method's range, if it says anything."""
    _, found, text = (row.reason or "").partition("its range is ")
    return f" (min {text.split(' ')[0]})" if found else ""
