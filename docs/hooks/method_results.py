"""What stored runs say of a method."""

from __future__ import annotations

import json

from page_parts import ROOT, script, table


def results(name: str) -> str:
    """Rows of `prunekit run zoo`; nothing where it was not stored."""
    path = ROOT / "benchmarks/results/zoo.json"
    if not path.is_file():
        return ""
    result, tables = json.loads(path.read_text(encoding="utf-8")), script("benchmarks/update_readme.py")
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
    path = ROOT / "benchmarks/results/scoring.json"
    if not path.is_file():
        return ""
    stored = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [
            str(row["visual_tokens"]),
            f"{row['macs'] / 1e9:.2f} G" if "macs" in row else "",
            f"{100 * row['share_of_dense']:.2f} %" if "macs" in row else "",
            f"{row['ms']:.1f}" if "ms" in row else "",
        ]
        for row in stored["rows"]
        if row["method"] == name
    ]
    where = f"{stored['hardware']['cpu']}, {stored['threads']} threads, `benchmarks/scoring.py`."
    return (
        table(["Visual tokens", "Multiply-adds", "Of a dense prefill", "Time, ms"], rows) + f"\n\n{where}"
        if rows
        else ""
    )
