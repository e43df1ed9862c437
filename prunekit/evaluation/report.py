"""One HTML file with everything a run found out: it needs no network and can be sent to anybody."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from string import Template

import plotly.graph_objects as go
import yaml
from plotly.offline import get_plotlyjs

from prunekit.evaluation import formats
from prunekit.evaluation._page import PAGE
from prunekit.evaluation._report_tables import families_table, methods_table
from prunekit.evaluation.result import MethodResult, Result

__all__ = ["write_report"]

NOTE = (
    "Budgets are averages of visual tokens over the decoder layers, so that methods with one and with two stages spend"
    " the same. Lost: only the dense model is right; gained: only the method is."
)
Cost = Callable[[MethodResult], float | None]
_COSTS: tuple[tuple[str, str, Cost], ...] = (
    ("Visual tokens", "visual tokens per decoder layer (average)", lambda row: row.average_visual_tokens),
    ("Operations", "multiply-adds of one prefill", lambda row: row.total_macs),
    ("Prefill time", "prefill (ms, batch size 1)", lambda row: row.prefill_ms),
)


def write_report(result: Result, path: Path, pictures: Sequence[Path] = ()) -> None:
    """Write the report; `pictures` are put into it."""
    provenance = result.provenance
    device = provenance["hardware"]
    title = f"{result.task['name']} on {result.model['name']}"
    page = Template(PAGE).substitute(
        title=escape(title),
        subtitle=escape(
            f"prunekit {provenance['versions']['prunekit']} · {provenance['date']} · "
            f"{device.get('gpu') or device['processor']} · seed {provenance['seed']}"
        ),
        facts=_facts(result),
        plotly=get_plotlyjs(),
        pareto=_pareto(result),
        note=escape(NOTE),
        table=methods_table(result),
        families=families_table(result),
        overlays=_overlays(pictures),
        config=escape(yaml.safe_dump(result.experiment, sort_keys=False, allow_unicode=True)),
        provenance=escape(json.dumps(provenance, indent=2, ensure_ascii=False)),
        notes="".join(f"<p><b>{escape(key)}</b>: {escape(text)}</p>" for key, text in result.notes.items()),
    )
    path.write_text(page, encoding="utf-8")


def _facts(result: Result) -> str:
    dense = result.methods[0]
    cells = sum(row.accuracy is not None for row in result.methods)
    wall = result.provenance.get("wall_s")
    facts = [
        (f"{formats.percent(dense.accuracy)} %", "dense accuracy"),
        (f"{result.task['samples']:,}", "questions per row"),
        (str(cells), "rows"),
        (str(result.model["visual_tokens_per_image"] or "varying"), "visual tokens per image"),
        (str(result.model["decoder_layers"]), "decoder layers"),
        *([(f"{wall:,.0f} s", "wall time")] if wall else []),
    ]
    return "".join(f"<div><b>{escape(value)}</b><span>{escape(name)}</span></div>" for value, name in facts)


def _pareto(result: Result) -> str:
    """One plot; buttons choose the cost on its horizontal axis."""
    dense, lines = result.methods[0], formats.curves(result)
    looks = formats.styles(list(lines))
    costs = [c for c in _COSTS if c[2](dense) is not None]
    figure = go.Figure()
    for name, rows in lines.items():
        color, _, symbol = looks[name]
        figure.add_scatter(
            x=[costs[0][2](row) for row in rows],
            y=[100 * (row.accuracy or 0) for row in rows],
            error_y=_bars(rows),
            name=name,
            mode="lines+markers",
            line={"color": color, "width": 2},
            marker={"symbol": symbol, "size": 9, "line": {"color": "white", "width": 1}},
            text=[_hover(row) for row in rows],
            hovertemplate="%{text}<extra></extra>",
        )
    low, high = dense.interval or (0.0, 0.0)
    figure.add_hline(y=100 * (dense.accuracy or 0), line={"color": formats.BLACK, "width": 1.3, "dash": "dash"})
    figure.add_hrect(y0=100 * low, y1=100 * high, fillcolor=formats.BLACK, opacity=0.07, line_width=0)
    buttons = [
        {
            "label": label,
            "method": "update",
            "args": [
                {"x": [[cost(row) for row in rows] for rows in lines.values()]},
                {"xaxis.title.text": axis, **{f"xaxis.{key}": value for key, value in _ticks(result, cost).items()}},
            ],
        }
        for label, axis, cost in costs
    ]
    figure.update_layout(
        template="plotly_white",
        height=520,
        margin={"l": 60, "r": 20, "t": 56, "b": 60},
        xaxis={"type": "log", "title": {"text": costs[0][1]}, **_ticks(result, costs[0][2])},
        yaxis={"title": {"text": "accuracy (%)"}},
        font={"family": "system-ui, sans-serif", "color": formats.BLACK},
        hoverlabel={"align": "left"},
        updatemenus=[
            {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 1.13, "buttons": buttons}
        ],
    )
    html = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
    return str(html)


def _ticks(result: Result, cost: Cost) -> dict[str, list[object]]:
    """Ticks at costs that occur, as far as their labels do not touch."""
    values = formats.spaced([value for row in result.methods if (value := cost(row))], count=14)
    return {"tickvals": list(values), "ticktext": [formats.number(value) for value in values]}


def _bars(rows: list[MethodResult]) -> dict[str, object]:
    accuracies = [row.accuracy or 0.0 for row in rows]
    intervals = [row.interval or (0.0, 0.0) for row in rows]
    return {
        "type": "data",
        "symmetric": False,
        "array": [100 * (high - a) for a, (_, high) in zip(accuracies, intervals, strict=True)],
        "arrayminus": [100 * (a - low) for a, (low, _) in zip(accuracies, intervals, strict=True)],
        "thickness": 1.2,
        "width": 4,
    }


def _hover(row: MethodResult) -> str:
    parts = [
        f"<b>{escape(row.name)}</b> {formats.budget_label(row.budget)}",
        f"accuracy {formats.percent(row.accuracy)} % {formats.interval(row.interval)}",
        f"tokens per layer {row.average_visual_tokens:.1f}, last {row.final_visual_tokens:.0f}",
        f"multiply-adds {formats.millions(row.total_macs)}" if row.macs else "",
        f"prefill {row.prefill_ms:.1f} ms" if row.prefill_ms is not None else "",
    ]
    return "<br>".join(part for part in parts if part)


def _overlays(pictures: Sequence[Path]) -> str:
    if not pictures:
        return ""
    images = "".join(
        f'<img alt="{escape(path.stem)}" src="data:image/png;base64,{_base64(path)}">' for path in pictures
    )
    return (
        "<h2>Kept tokens</h2><p>What each method leaves of an image; patches are paler the earlier they are dropped."
        f' Green: the answer is right, orange: it is wrong.</p><div class="pictures">{images}</div>'
    )


def _base64(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()
