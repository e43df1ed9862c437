"""The result as a table on the terminal."""

from __future__ import annotations

from rich.table import Table

from prunekit.evaluation import formats
from prunekit.evaluation.experiment import DENSE
from prunekit.evaluation.result import MethodResult, Result

__all__ = ["table"]

_COLUMNS = ("budget", "tokens/layer", "last", "accuracy %", "95 %", "vs dense", "95 %", "lost/gained", "MACs", "ms")


def table(result: Result) -> Table:
    """One line per method and budget; a rule between methods."""
    questions = result.task["samples"]
    shown = Table(
        title=f"{result.task['name']}, {questions:,} questions · {result.model['name']} ({result.model['path']})",
        caption="tokens/layer: average visual tokens per decoder layer · last: after the last stage · "
        "lost/gained: only dense right / only the method right · ms: prefill, batch size 1",
        header_style="bold",
        caption_justify="left",
    )
    shown.add_column("method", no_wrap=True)
    for name in _COLUMNS:
        shown.add_column(name, justify="right", no_wrap=True)
    for row, following in zip(result.methods, [*result.methods[1:], None], strict=True):
        shown.add_row(*_line(row), end_section=following is None or following.name != row.name)
    return shown


def _line(row: MethodResult) -> list[str]:
    if row.accuracy is None:
        return [row.name, formats.budget_label(row.budget), f"[dim]not reachable{_least(row)}[/dim]"]
    versus = row.versus_dense
    bold = "bold" if row.name == DENSE else "none"
    return [
        f"[{bold}]{row.name}[/{bold}]",
        formats.budget_label(row.budget),
        f"{row.average_visual_tokens:.1f}",
        f"{row.final_visual_tokens:.0f}",
        f"[{bold}]{formats.percent(row.accuracy)}[/{bold}]",
        formats.interval(row.interval),
        "" if versus is None else formats.points(versus.difference),
        "" if versus is None else formats.interval(versus.interval, signed=True),
        "" if versus is None else f"{versus.lost}/{versus.gained}",
        formats.millions(row.total_macs),
        "" if row.prefill_ms is None else f"{row.prefill_ms:.1f}",
    ]


def _least(row: MethodResult) -> str:
    """What the reason says about the method's range, if it says anything."""
    _, found, text = (row.reason or "").partition("its range is ")
    return f" (min {text.split(' ')[0]})" if found else ""
