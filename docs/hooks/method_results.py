"""What stored runs say of a method."""

from __future__ import annotations

import json
from typing import Any

from page_parts import ROOT, script, table


def results(name: str) -> str:
    """Rows of `prunekit run zoo`; nothing where it was not stored."""
    result, tables = _stored("zoo"), script("benchmarks/update_readme.py")
    if not result:
        return ""
    own = {"dense"} | {
        key
        for key, method in result["experiment"]["methods"].items()
        if isinstance(method, dict) and method["class_path"].rpartition(".")[2] == name
    }
    rows = [tables.row(method) for method in result["methods"] if method["name"] in own]
    head = ["Method", "Budget", "Tokens per layer", "At the end", "Accuracy, %", "FLOPs", "Prefill, ms"]
    return table(head, rows) if len(rows) > 1 else ""


def scoring(name: str) -> str:
    """What scoring costs, as `benchmarks/scoring.py` measured it; nothing where that was not stored."""
    stored = _stored("scoring")
    rows = [[str(row["visual_tokens"]), *_costs(row)] for row in stored.get("rows", ()) if row["method"] == name]
    if not rows:
        return ""
    return table(["Visual tokens", "Multiply-adds", "Of a dense prefill", "Time, ms"], rows) + f"\n\n{_where(stored)}"


def scoring_of_all() -> str:
    """The same of every method and baseline, one a row."""
    stored = _stored("scoring")
    rows = stored.get("rows", ())
    sizes = sorted({row["visual_tokens"] for row in rows})
    names = dict.fromkeys(row["method"] for row in rows)
    found = {(row["method"], row["visual_tokens"]): _costs(row) for row in rows}
    head = ["Method", *(f"{what}, {size:,} tokens" for size in sizes for what in ("Multiply-adds", "of dense", "ms"))]
    cells = ([name, *(cell for size in sizes for cell in found.get((name, size), [""] * 3))] for name in names)
    return table(head, cells) + f"\n\n{_where(stored)}" if rows else "No measurements are stored in this checkout."


def _stored(name: str) -> dict[str, Any]:
    path = ROOT / f"benchmarks/results/{name}.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def _costs(row: dict[str, Any]) -> list[str]:
    """Multiply-adds, their share of a dense prefill, and milliseconds."""
    macs = f"{row['macs'] / 1e9:.2f} G"
    return [macs, f"{100 * row['share_of_dense']:.2f} %", f"{row['ms']:.1f}" if "ms" in row else ""]


def _where(stored: dict[str, Any]) -> str:
    return f"{stored['hardware']['cpu']}, {stored['threads']} threads, `benchmarks/scoring.py`."
