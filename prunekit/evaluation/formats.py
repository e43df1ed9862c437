"""How numbers, names and colours look, the same in the terminal, in pictures and in the report."""

from __future__ import annotations

from prunekit.evaluation.cells import Amount, amount_label
from prunekit.evaluation.experiment import DENSE
from prunekit.evaluation.result import MethodResult, Result

__all__ = ["BLACK", "budget_label", "curves", "interval", "millions", "number", "percent", "points", "spaced", "styles"]

BLACK = "#1b1f24"
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7A5195", "#5E6B73")  # Okabe and Ito's
_MARKERS = (("o", "circle"), ("s", "square"), ("^", "triangle-up"), ("D", "diamond"), ("v", "triangle-down"),
            ("P", "cross"), ("X", "x"), ("*", "star"))  # fmt: skip


def styles(names: list[str]) -> dict[str, tuple[str, str, str]]:
    """Colour, matplotlib marker and plotly symbol of each method: no two methods share both colour and marker."""
    return {
        name: (_COLORS[i % len(_COLORS)], *_MARKERS[(i + i // len(_COLORS)) % len(_MARKERS)])
        for i, name in enumerate(names)
    }


def curves(result: Result) -> dict[str, list[MethodResult]]:
    """Rows with numbers by method, few tokens first, without the dense model."""
    found: dict[str, list[MethodResult]] = {}
    for row in result.methods:
        if row.name != DENSE and row.accuracy is not None:
            found.setdefault(row.name, []).append(row)
    return {name: sorted(rows, key=lambda r: r.average_visual_tokens or 0) for name, rows in found.items()}


def budget_label(budget: Amount) -> str:
    """A budget for people."""
    return amount_label(budget)


def percent(value: float | None) -> str:
    """A share in percent, without the sign."""
    return "" if value is None else f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference of shares in percentage points, with its sign."""
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def interval(pair: tuple[float, float] | None, signed: bool = False) -> str:
    """An interval of shares, in percent."""
    if pair is None:
        return ""
    low, high = (points(x) if signed else percent(x) for x in pair)
    return f"[{low}, {high}]"


def number(value: float) -> str:
    """A cost on an axis."""
    return millions(int(value)) if value >= 10**6 else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def spaced(values: list[float], count: int) -> list[float]:
    """Those of the values, from the largest on, that are far enough apart for `count` labels on a logarithmic axis."""
    ordered = sorted({value for value in values if value > 0}, reverse=True)
    chosen = ordered[:1]
    for value in ordered[1:]:
        if chosen[-1] / value >= (ordered[0] / ordered[-1]) ** (1 / count):
            chosen.append(value)
    return chosen


def millions(value: int | None) -> str:
    """Operations with a unit that keeps the number short."""
    if value is None:
        return ""
    for unit, size in (("T", 10**12), ("G", 10**9), ("M", 10**6)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return str(value)
