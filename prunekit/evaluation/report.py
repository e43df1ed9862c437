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
from prunekit.evaluation.experiment import DENSE
from prunekit.evaluation.result import MethodResult, Result

__all__ = ["write_report"]

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
        note=escape(
            "Budgets are averages of visual tokens over the decoder layers, so that methods with one and with two stages"
            " spend the same. Lost: only the dense model is right; gained: only the method is."
        ),
        table=_table(result),
        families=_families(result),
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
        (str(result.model["visual_tokens_per_image"]), "visual tokens per image"),
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
            "args": [{"x": [[cost(row) for row in rows] for rows in lines.values()]}, {"xaxis.title.text": axis}],
        }
        for label, axis, cost in costs
    ]
    figure.update_layout(
        template="plotly_white",
        height=520,
        margin={"l": 60, "r": 20, "t": 56, "b": 60},
        xaxis={"type": "log", "title": {"text": costs[0][1]}, "dtick": "D2"},
        yaxis={"title": {"text": "accuracy (%)"}},
        font={"family": "system-ui, sans-serif", "color": formats.BLACK},
        hoverlabel={"align": "left"},
        updatemenus=[{"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 1.13, "buttons": buttons}],
    )
    html = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})
    return str(html)


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


_HEADS = ("method", "budget", "tokens/layer", "last stage", "accuracy %", "vs dense", "lost", "gained", "MACs", "prefill ms")


def _table(result: Result) -> str:
    looks = formats.styles(list(formats.curves(result)))
    heads = "".join(f'<th data-sort="no">{escape(head)}</th>' for head in _HEADS)
    body = "".join(_row(row, looks) for row in result.methods)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _row(row: MethodResult, looks: dict[str, tuple[str, str, str]]) -> str:
    name = _name(row, looks)
    if row.accuracy is None:
        return f'<tr><td>{name}</td><td>{formats.budget_label(row.budget)}</td>' + (
            f'<td class="none" colspan="{len(_HEADS) - 2}">not reachable: {escape(row.reason or "")}</td></tr>'
        )
    versus = row.versus_dense
    cells = [
        (row.budget, formats.budget_label(row.budget)),
        (row.average_visual_tokens, f"{row.average_visual_tokens:.1f}"),
        (row.final_visual_tokens, f"{row.final_visual_tokens:.0f}"),
        (row.accuracy, f"{formats.percent(row.accuracy)} <small>{formats.interval(row.interval)}</small>"),
        (versus and versus.difference, versus and _versus(versus.difference, versus.interval)),
        (versus and versus.lost, versus and str(versus.lost)),
        (versus and versus.gained, versus and str(versus.gained)),
        (row.total_macs, formats.millions(row.total_macs)),
        (row.prefill_ms, "" if row.prefill_ms is None else f"{row.prefill_ms:.1f}"),
    ]
    columns = "".join(f'<td data-value="{"" if value is None else value}">{text or ""}</td>' for value, text in cells)
    return f'<tr class="{"dense" if row.name == DENSE else ""}"><td>{name}</td>{columns}</tr>'


def _versus(difference: float, pair: tuple[float, float]) -> str:
    return f"{formats.points(difference)} <small>{formats.interval(pair, signed=True)}</small>"


def _name(row: MethodResult, looks: dict[str, tuple[str, str, str]]) -> str:
    color = looks[row.name][0] if row.name in looks else formats.BLACK
    return f'<i class="swatch" style="background:{color}"></i>{escape(row.name)}'


def _families(result: Result) -> str:
    dense, names = result.methods[0], list(result.methods[0].families)
    looks = formats.styles(list(formats.curves(result)))
    heads = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    body = []
    for row in result.methods:
        if row.accuracy is None:
            continue
        cells = "".join(_family(row.families[name], dense.families[name]) for name in names)
        label = f'<td>{_name(row, looks)}</td><td>{formats.budget_label(row.budget)}</td>'
        body.append(f'<tr class="{"dense" if row.name == DENSE else ""}">{label}{cells}</tr>')
    return f"<table><thead><tr><th>method</th><th>budget</th>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _family(accuracy: float, dense: float) -> str:
    """Blue where better than dense, orange where worse: a pair that colour-blind readers can tell apart."""
    gap = max(-1.0, min(1.0, (accuracy - dense) / 0.5))
    color = "213,94,0" if gap < 0 else "0,114,178"
    return f'<td style="background:rgba({color},{abs(gap) * 0.65:.2f})">{formats.percent(accuracy)}</td>'


def _overlays(pictures: Sequence[Path]) -> str:
    if not pictures:
        return ""
    images = "".join(
        f'<img alt="kept tokens, {escape(path.stem)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
        for path in pictures
    )
    return (
        "<h2>Kept tokens</h2><p>What each method leaves of an image; patches are paler the earlier they are dropped. Green: the"
        f' answer is right, orange: it is wrong.</p><div class="pictures">{images}</div>'
    )
