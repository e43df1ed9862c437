"""What every method costs on every preset at four budgets, from configurations alone: JSON, CSV and Markdown.

    python benchmarks/cost_table.py --output benchmarks/results/costs
    python benchmarks/cost_table.py --models llava-1.5-7b --methods STAR FastV --output /tmp/costs

Multiply-adds of a prefill of one sample and of 100 generated tokens; see docs/flops.md for what is counted. The files
are written anew after every model. The documentation shows the tables that `section` makes of the JSON file.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from timing import provenance

from prunekit import cost, policies
from prunekit.errors import PrunekitError
from prunekit.presets import presets

__all__ = ["main", "section"]

BUDGETS = (0.5, 0.25, 0.125, 64)
DECODED = 100
COLUMNS = ["model", "method", "budget", "total_macs", "share", "scorer", "prefill", "decode", "kv_bytes", "reason"]
Rows = list[dict[str, Any]]


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


def counted(model: str, names: Sequence[str]) -> tuple[dict[str, Any], Rows]:
    """The prompt and the number of parameters; and one row for the dense model and for every method and budget."""
    found = cost(model, *names, budget=BUDGETS, decode_tokens=DECODED, unreachable="skip")
    rows = [row(model, each.to_dict(), found.dense.cost.total_macs) for each in (found.dense, *found.pruned)]
    without = ({"method": each["name"], "budget": each["budget"], "reason": each["reason"]} for each in found.skipped)
    return {"parameters": found.parameters, "prompt": found.prompt}, [
        *rows,
        *({"model": model, **each} for each in without),
    ]


def shared(model: str, names: Sequence[str], jobs: int) -> tuple[dict[str, Any], Rows]:
    """The same, counted by several processes: each takes every `jobs`-th method."""
    shares = [list(names[start::jobs]) for start in range(min(jobs, len(names)))]
    if len(shares) < 2:
        return counted(model, names)
    with ProcessPoolExecutor(len(shares), mp_context=get_context("spawn"), initializer=one_thread) as pool:
        found = list(pool.map(counted, [model] * len(shares), shares))
    place = {name: number for number, name in enumerate(names)}
    rows = sorted(
        (each for _, share in found for each in share[1:]), key=lambda each: place.get(each["method"], len(place))
    )
    about, first = found[0]
    return about, [first[0], *rows]


def one_thread() -> None:
    """Shapes are worked out by one thread."""
    torch.set_num_threads(1)


def row(model: str, found: dict[str, Any], dense: int) -> dict[str, Any]:
    """The numbers of the table."""
    parts = {part: found["macs"][part] for part in ("scorer", "prefill", "decode")}
    share = round(found["total_macs"] / dense, 4)
    head = {"model": model, "method": found["name"], "budget": found["budget"], "total_macs": found["total_macs"]}
    return {**head, "share": share, **parts, "kv_bytes": found["kv_bytes"]}


def used(jobs: int) -> dict[str, float]:
    """Processor time of this process and its children so far, in s; and what they held at once at most, in bytes."""
    own, children = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    unit = 1 if sys.platform == "darwin" else 1024
    seconds = sum(each.ru_utime + each.ru_stime for each in (own, children))
    return {"processor_s": seconds, "memory": unit * (own.ru_maxrss + jobs * children.ru_maxrss)}


# --- tables -----------------------------------------------------------------------------------------------------------


def section(result: dict[str, Any]) -> str:
    """Where the numbers come from, what is counted of each model, and one table a model, in Markdown."""
    about = result["models"]
    versions = ", ".join(f"{name} {number}" for name, number in result["versions"].items())
    minutes = sum(each["seconds"] for each in about.values()) / 60
    memory = max(each["memory"] for each in about.values()) / 2**30
    origin = (
        f"Models: {len(about)}, counted in {minutes:.0f} minutes by {result['config']['jobs']} processes that held"
        f" {memory:.1f} GiB at most; {result['hardware']['cpu']}, load {result['hardware']['load']:.1f} at the start;"
        f" {versions}; {result['time'][:10]}. Stored in `benchmarks/results/costs`."
    )
    head = ["Model", "Visual tokens", "Other tokens", "Dense, T MACs", "KV cache, MiB", "Time, s", "Processor time, s"]
    dense = {each["model"]: each for each in result["rows"] if each["method"] == "dense"}
    rows = (
        [
            f"[{name}](#{anchor(name)})",
            *(str(each["prompt"][kind]) for kind in ("visual_tokens", "text_tokens")),
            f"{dense[name]['total_macs'] / 1e12:.2f}",
            f"{dense[name]['kv_bytes'] / 2**20:.0f}",
            *(f"{each[kind]:.0f}" for kind in ("seconds", "processor_s")),
        ]
        for name, each in about.items()
    )
    return "\n\n".join([origin, table(head, rows), *(of_model(name, result["rows"]) for name in about)])


def of_model(model: str, rows: Rows) -> str:
    """Shares of the dense model's multiply-adds by method and budget, and why some are missing."""
    own = [each for each in rows if each["model"] == model and each["method"] != "dense"]
    names = dict.fromkeys(each["method"] for each in own)
    shares = {(each["method"], each["budget"]): f"{100 * each['share']:.1f} %" for each in own if "share" in each}
    lines = ([name, *(shares.get((name, budget), "") for budget in BUDGETS)] for name in names)
    parts = [f"## {model}", table(["Method", *(f"{budget:g}" for budget in BUDGETS)], lines)]
    missing = list(reasons(own))
    if missing:
        parts.append('<details markdown="1"><summary>Why cells are blank</summary>')
        parts += ["\n".join(f"- {line}" for line in missing), "</details>"]
    return "\n\n".join(parts)


def reasons(rows: Rows) -> Iterator[str]:
    """One line for each method and reason, with the budgets that it holds for."""
    found: dict[tuple[str, str], list[str]] = {}
    for each in rows:
        if "reason" in each:
            found.setdefault((each["method"], each["reason"]), []).append(f"{each['budget']:g}")
    for (name, reason), budgets in found.items():
        yield f"{name} at {', '.join(budgets)}: {reason.replace('<', '&lt;')}"


def anchor(heading: str) -> str:
    """What the documentation links to."""
    return heading.replace(".", "")


def table(head: Sequence[str], rows: Any) -> str:
    """A table in Markdown, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# --- files ------------------------------------------------------------------------------------------------------------


def write(result: dict[str, Any], folder: Path) -> None:
    """Write costs.json, with one row a line, costs.csv and costs.md."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = ",\n  ".join(json.dumps(each) for each in result["rows"])
    text = json.dumps(result | {"rows": []}, indent=1).replace('"rows": []', f'"rows": [\n  {lines}\n ]')
    (folder / "costs.json").write_text(text + "\n", encoding="utf-8")
    with (folder / "costs.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(result["rows"])
    (folder / "costs.md").write_text(f"# What methods cost\n\n{section(result)}\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Count, and write costs.json, costs.csv and costs.md to a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder for costs.json, costs.csv and costs.md")
    parser.add_argument("--models", nargs="*", default=list(presets()), help="presets; by default all")
    parser.add_argument("--methods", nargs="*", default=methods(), help="by default all that need no arguments")
    parser.add_argument("--jobs", type=int, default=2, help="processes; each takes less than 1 GiB")
    chosen = parser.parse_args(arguments)
    chosen.device = "cpu"
    result: dict[str, Any] = (
        {"budgets": BUDGETS, "decode_tokens": DECODED} | provenance(chosen) | {"models": {}, "rows": []}
    )
    for model in chosen.models:
        start, before = time.perf_counter(), used(chosen.jobs)
        about, rows = shared(model, chosen.methods, chosen.jobs)
        now = used(chosen.jobs)
        spent = {"seconds": time.perf_counter() - start, "processor_s": now["processor_s"] - before["processor_s"]}
        result["models"][model] = (
            about | {name: round(each, 1) for name, each in spent.items()} | {"memory": now["memory"]}
        )
        result["rows"] += rows
        write(result, chosen.output)
        print(f"{model}: {spent['seconds']:.0f} s", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
