"""Put the results of a finished run into README.md and the documentation.

```
prunekit run quickstart --output runs/quickstart
python benchmarks/update_readme.py runs/quickstart
prunekit run zoo --output runs/zoo
python benchmarks/update_readme.py runs/zoo --name zoo
```

Copies result.json to `benchmarks/results/NAME.json` and pareto.png to `docs/images/NAME.png`, and writes the table of
`quickstart` between the marks in README.md. Numbers are never typed by hand.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from prunekit.evaluation.cells import amount_label

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- results:begin -->", "<!-- results:end -->"

__all__ = ["main", "section", "update"]


COMMANDS = {"quickstart": "make demo", "zoo": "prunekit run zoo"}


def section(result: dict[str, Any], picture: str, name: str = "quickstart") -> str:
    """The table, the picture and a sentence on where the numbers come from, in Markdown."""
    head = ["Method", "Budget", "Tokens per layer", "At the end", "Accuracy, %", "FLOPs", "Prefill, ms"]
    align = ["---", "---", *["---:"] * 5]
    lines = ["| " + " | ".join(cells) + " |" for cells in (head, align, *map(row, result["methods"]))]
    reasons = {f"- {m['name']} at {budget(m['budget'])}: {m['reason']}" for m in result["methods"] if m.get("reason")}
    parts = [
        "\n".join(lines),
        *(["Not reachable:\n\n" + "\n".join(sorted(reasons))] if reasons else []),
        origin(result, name),
    ]
    return "\n\n".join([f"![Accuracy over the cost of the prefill, for every method and budget]({picture})", *parts])


def row(method: dict[str, Any]) -> list[str]:
    """Cells of one method at one budget."""
    if method.get("accuracy") is None:
        return [method["name"], budget(method["budget"]), "not reachable", *[""] * 4]
    low, high = method["interval"]
    prefill = method.get("prefill_ms")
    return [
        method["name"],
        budget(method["budget"]),
        f"{method['average_visual_tokens']:.1f}",
        f"{method['final_visual_tokens']:.1f}",
        f"{100 * method['accuracy']:.1f} [{100 * low:.1f}, {100 * high:.1f}]",
        operations(method.get("flops")),
        "" if prefill is None else f"{prefill:.1f}",
    ]


def budget(value: int | float | str | None) -> str:
    """A budget as people read it."""
    return "all" if value is None else amount_label(value)


def operations(value: int | None) -> str:
    """Floating-point operations with a unit."""
    if value is None:
        return ""
    unit, size = next((u, s) for u, s in (("T", 10**12), ("G", 10**9), ("M", 10**6), ("", 1)) if value >= s or s == 1)
    return f"{value / size:.3g} {unit}".strip()


def origin(result: dict[str, Any], name: str) -> str:
    """Where the numbers come from, and what they mean."""
    provenance, task = result["provenance"], result["task"]
    machine = provenance["hardware"]
    described = f"{machine.get('gpu') or machine['processor']}, {machine['threads']} threads"
    versions = ", ".join(
        f"{k} {v}" for k, v in provenance["versions"].items() if k in ("python", "torch", "transformers")
    )
    notes = result.get("notes", {})
    names = {"interval": "In brackets", "macs": "FLOPs", "prefill_ms": "Prefill"}
    shown = [f"{label}: {notes[name]}." for name, label in names.items() if name in notes]
    return (
        "The budget is the average number of visual tokens per decoder layer, as a share of all. "
        + " ".join(shown)
        + f"\n\nTask {task['name']} (version {task['version']}), {task['samples']:,} questions, seed"
        f" {provenance['seed']}; {described}; {versions}; {provenance['date'][:10]}. Every number is from one run of"
        f" `{COMMANDS[name]}`, stored in `benchmarks/results/{name}.json`."
    )


def update(run: Path, root: Path = ROOT, name: str = "quickstart") -> None:
    """Store a run's results, and write the README's section of the quick start."""
    source = run / "result.json"
    if not source.is_file():
        raise SystemExit(f"{source} does not exist; give the folder of a finished run.")
    result = json.loads(source.read_text(encoding="utf-8"))
    picture = f"docs/images/{name}.png"
    for target in (root / "benchmarks" / "results" / f"{name}.json", root / picture):
        target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, root / "benchmarks" / "results" / f"{name}.json")
    shutil.copyfile(run / "pareto.png", root / picture)
    if name != "quickstart":
        return
    readme = root / "README.md"
    text = readme.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{readme} must hold {BEGIN} and {END}, once each.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    readme.write_text(f"{before}{BEGIN}\n{section(result, picture)}\n{END}{after}", encoding="utf-8")


def main(words: list[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("--name", choices=COMMANDS, default="quickstart", help="which experiment it was")
    options = parser.parse_args(words)
    update(options.run, name=options.name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
