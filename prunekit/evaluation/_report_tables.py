"""The two tables of the report, as HTML."""

from __future__ import annotations

from html import escape

from prunekit.evaluation import formats
from prunekit.evaluation.experiment import DENSE
from prunekit.evaluation.result import MethodResult, Result

__all__ = ["families_table", "methods_table"]

_HEADS = (
    "method",
    "budget",
    "tokens/layer",
    "last stage",
    "accuracy %",
    "vs dense",
    "lost",
    "gained",
    "MACs",
    "prefill ms",
)


def methods_table(result: Result) -> str:
    """All rows with their costs; a click on a head sorts."""
    looks = formats.styles(list(formats.curves(result)))
    heads = "".join(f'<th data-sort="no">{escape(head)}</th>' for head in _HEADS)
    body = "".join(_row(row, looks) for row in result.methods)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def _row(row: MethodResult, looks: dict[str, tuple[str, str, str]]) -> str:
    name = _name(row, looks)
    if row.accuracy is None:
        return f"<tr><td>{name}</td><td>{formats.budget_label(row.budget)}</td>" + (
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


def families_table(result: Result) -> str:
    """Accuracy of every row in every family of questions."""
    dense, names = result.methods[0], list(result.methods[0].families)
    looks = formats.styles(list(formats.curves(result)))
    heads = "".join(f"<th>{escape(name.replace('_', ' '))}</th>" for name in names)
    body = []
    for row in result.methods:
        if row.accuracy is None:
            continue
        cells = "".join(_family(row.families[name], dense.families[name]) for name in names)
        label = f"<td>{_name(row, looks)}</td><td>{formats.budget_label(row.budget)}</td>"
        body.append(f'<tr class="{"dense" if row.name == DENSE else ""}">{label}{cells}</tr>')
    return f"<table><thead><tr><th>method</th><th>budget</th>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def _family(accuracy: float, dense: float) -> str:
    """Blue where better than dense, orange where worse: a pair that colour-blind readers can tell apart."""
    gap = max(-1.0, min(1.0, (accuracy - dense) / 0.5))
    color = "213,94,0" if gap < 0 else "0,114,178"
    return f'<td style="background:rgba({color},{abs(gap) * 0.65:.2f})">{formats.percent(accuracy)}</td>'
