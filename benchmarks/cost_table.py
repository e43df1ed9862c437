"""What every method costs on every preset at four budgets, from configurations alone: JSON, CSV and Markdown.

    python benchmarks/cost_table.py --output benchmarks/results/costs
    python benchmarks/cost_table.py --models llava-1.5-7b --methods STAR FastV --output /tmp/costs

Multiply-adds of a prefill of one sample and of 100 generated tokens; see docs/flops.md for what is counted.
"""

from __future__ import annotations

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from prunekit import cost, policies
from prunekit.errors import PrunekitError
from prunekit.presets import presets

BUDGETS = (0.5, 0.25, 0.125, 64)
DECODED = 100
COLUMNS = ["model", "method", "budget", "total_macs", "share", "scorer", "prefill", "decode", "kv_bytes", "reason"]


def methods() -> list[str]:
    """Methods and policies that need no arguments."""
    found = []
    for name in policies.__all__:
        try:
            getattr(policies, name)()
        except (TypeError, PrunekitError):
            continue
        found.append(name)
    return found


def rows_of(model: str, names: Sequence[str]) -> list[dict[str, Any]]:
    """One row for the dense model, and one for every method and budget; a reason where there is no count."""
    found = cost(model, *names, budget=BUDGETS, decode_tokens=DECODED, unreachable="skip")
    counted = [row(model, each.to_dict(), found.dense.cost.total_macs) for each in (found.dense, *found.pruned)]
    without = ({"method": each["name"], "budget": each["budget"], "reason": each["reason"]} for each in found.skipped)
    return [*counted, *({"model": model, **each} for each in without)]


def shared(model: str, names: Sequence[str], jobs: int) -> list[dict[str, Any]]:
    """The same rows, counted by several processes: each takes every `jobs`-th method."""
    shares = [list(names[start::jobs]) for start in range(min(jobs, len(names)))]
    if len(shares) < 2:
        return rows_of(model, names)
    with ProcessPoolExecutor(len(shares), mp_context=get_context("spawn"), initializer=one_thread) as pool:
        found = list(pool.map(rows_of, [model] * len(shares), shares))
    place = {name: number for number, name in enumerate(names)}
    rows = sorted(
        (each for share in found for each in share[1:]), key=lambda each: place.get(each["method"], len(place))
    )
    return [found[0][0], *rows]


def one_thread() -> None:
    """Shapes are worked out by one thread."""
    torch.set_num_threads(1)


def row(model: str, found: dict[str, Any], dense: int) -> dict[str, Any]:
    """The numbers of the table."""
    parts = {part: found["macs"][part] for part in ("scorer", "prefill", "decode")}
    share = round(found["total_macs"] / dense, 4)
    head = {"model": model, "method": found["name"], "budget": found["budget"], "total_macs": found["total_macs"]}
    return {**head, "share": share, **parts, "kv_bytes": found["kv_bytes"]}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Shares of the dense model's multiply-adds by method and budget: one Markdown table a model."""
    text = []
    for model in dict.fromkeys(each["model"] for each in rows):
        own = [each for each in rows if each["model"] == model]
        text.append(f"## {model}\n\nDense: {own[0]['total_macs'] / 1e12:.2f} T multiply-adds.\n")
        text.append("| method | " + " | ".join(f"{budget:g}" for budget in BUDGETS) + " |")
        text.append("|---" * (len(BUDGETS) + 1) + "|")
        for name in dict.fromkeys(each["method"] for each in own[1:]):
            shares = {each["budget"]: each.get("share") for each in own if each["method"] == name}
            cells = ["" if shares.get(budget) is None else f"{100 * shares[budget]:.1f} %" for budget in BUDGETS]
            text.append(f"| {name} | " + " | ".join(cells) + " |")
        text.append("")
    return "\n".join(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write costs.json, costs.csv and costs.md to a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for costs.json, costs.csv and costs.md")
    parser.add_argument("--models", nargs="*", default=list(presets()), help="presets; by default all")
    parser.add_argument("--methods", nargs="*", default=methods(), help="by default all that need no arguments")
    parser.add_argument("--jobs", type=int, default=2, help="processes; each takes less than 1 GiB")
    chosen = parser.parse_args(arguments)
    start, rows = time.perf_counter(), []
    for model in chosen.models:
        rows += shared(model, chosen.methods, chosen.jobs)
        print(f"{model}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
    chosen.output.mkdir(parents=True, exist_ok=True)
    (chosen.output / "costs.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    with (chosen.output / "costs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    (chosen.output / "costs.md").write_text(table(rows), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
