"""Put the results of `overhead.py` into the documentation.

```
python benchmarks/overhead.py --output build/overhead.json
python benchmarks/update_overhead.py build/overhead.json
python benchmarks/update_overhead.py build/overhead.json --scaling build/scaling.json   # of a run of its own
```

Copies the file to `benchmarks/results/overhead.json` and writes the tables between the marks in `benchmarks/README.md`,
which the documentation includes. Numbers are never typed by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- overhead:begin -->", "<!-- overhead:end -->"

__all__ = ["main", "section", "update"]


def section(result: dict[str, Any]) -> str:
    """All tables, and a sentence on where the numbers come from, in Markdown."""
    found = dict(sorted(result["families"].items()))
    plans = list(next(iter(found.values()))["plans"])
    head = (
        f"{len(found)} families, {origin(result)} In brackets: 95 % intervals of the median. Stored in"
        " `benchmarks/results/overhead.json`."
    )
    kinds = {"prefill": "ratio_to_ideal", "prefill without scoring": "unscored_ratio_to_ideal"}
    kinds |= {"each token": "decode_ratio_to_ideal"}
    over_all = ", ".join(f"{result[ratio]:.3f} ({kind})" for kind, ratio in kinds.items() if ratio in result)
    middle = f"Median of pruned / ideal over all families and plans: {over_all}."
    parts = [head, middle, summary(found, plans)]
    if "scaling" in result:
        parts.append(scaling(result["scaling"]))
    for plan in plans:
        stages = next(iter(found.values()))["plans"][plan]["stages"]
        named = ", ".join(f"{count} tokens from `{site}` on" for site, count in stages.items())
        parts.append(f"### {plan}\n\nOn {next(iter(found))}: {named}.\n\n{families(found, plan)}")
    missing = {f"{name}: {why}" for name, why in result["left_out"].items()}
    for name, each in found.items():
        for plan, values in each["plans"].items():
            missing |= {f"{name}, {plan}, {way}: {why}" for way, why in values["left_out"].items() if way == "ideal"}
        missing |= {f"{name}, {plan}: {why}" for plan, why in each.get("impossible", {}).items()}
    if missing:
        parts.append("Left out:\n\n" + "\n".join(f"- {line.rstrip('.')}." for line in sorted(missing)))
    return "\n\n".join(parts)


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    """A table in Markdown, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def interval(ratio: dict[str, float] | None) -> str:
    """A median with its interval."""
    return "" if ratio is None else f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def medians(found: dict[str, Any], plan: str, ratio: str) -> Iterator[tuple[float, str]]:
    """The median of a ratio of every family that has it, and the family."""
    for name, each in found.items():
        if ratio in each["plans"].get(plan, {"ratios": ()})["ratios"]:
            yield each["plans"][plan]["ratios"][ratio]["median"], name


def summary(found: dict[str, Any], plans: list[str]) -> str:
    """One line a plan: medians over families, and the family in which pruning costs most."""
    head = ["Plan", "Families", "Prefill, pruned / ideal", "Highest", "Without scoring", "Highest"]
    head += ["Token, pruned / ideal", "Highest"]
    head += ["Prefill, dense / pruned", "Prefill, usual / pruned"]
    rows = []
    for plan in plans:
        row = [plan, str(sum(plan in each["plans"] for each in found.values()))]
        for ratio in ("ratio_to_ideal", "unscored_ratio_to_ideal", "decode_ratio_to_ideal"):
            values = list(medians(found, plan, ratio))
            row += (
                [f"{median(value for value, _ in values):.3f}", "{:.3f} ({})".format(*max(values))]
                if values
                else ["", ""]
            )
        for ratio in ("speedup_over_dense", "usual_over_pruned"):
            values = list(medians(found, plan, ratio))
            row.append(f"{median(value for value, _ in values):.2f}" if values else "")
        rows.append(row)
    return table(head, rows)


def families(found: dict[str, Any], plan: str) -> str:
    """One line a family."""
    head = [
        "Family",
        "Visual tokens",
        "Dense, ms",
        "Pruned, ms",
        "Scoring, ms",
        "Pruned / ideal",
        "Token, dense, ms",
        "Token, pruned, ms",
    ]
    head += ["Token, pruned / ideal", "Usual / pruned", "Memory, dense, pruned, ideal, MiB"]
    rows = []
    for name, each in found.items():
        if plan not in each["plans"]:
            continue
        dense, ways, ratios = each["dense"], each["plans"][plan]["ways"], each["plans"][plan]["ratios"]
        weighed = [dense, ways["pruned"], *([ways["ideal"]] if "ideal" in ways else [])]
        usual = ratios.get("usual_over_pruned")
        rows.append(
            [
                name,
                str(each["shape"]["visual"]),
                f"{dense['prefill_ms']:.0f}",
                f"{ways['pruned']['prefill_ms']:.0f}",
                f"{each['plans'][plan]['scoring_ms']:.1f}",
                interval(ratios.get("ratio_to_ideal")),
                f"{dense['decode_ms_per_token']:.2f}",
                f"{ways['pruned']['decode_ms_per_token']:.2f}",
                interval(ratios.get("decode_ratio_to_ideal")),
                "" if usual is None else f"{usual['median']:.2f}",
                ", ".join(f"{way['peak_memory'] / 2**20:.1f}" for way in weighed),
            ]
        )
    return table(head, rows)


def scaling(found: dict[str, Any]) -> str:
    """The ways on more tokens, and how the memory of the scoring layer grows."""
    head = [
        "Width",
        "Visual tokens",
        *(f"{way}, ms" for way in found["times"][0]["ways"]),
        "usual / pruned",
        "pruned / ideal",
    ]
    rows = []
    for each in found["times"]:
        times = [f"{way['prefill_ms']:.0f}" for way in each["ways"].values()]
        ratios = [interval(each["ratios"][name]) for name in ("usual_over_pruned", "ratio_to_ideal")]
        rows.append([str(each["hidden"]), str(each["visual"]), *times, *ratios])
    memory = found["memory"]
    ways = list(memory["growth"])
    weighed = [
        [str(row["visual"]), *(f"{row[way] / 2**20:.2f}" for way in ways)] for row in memory["tokens"]
    ]  # fmt: skip
    power = " and ".join(f"{memory['growth'][way]:.2f} ({way})" for way in ways)
    shape = found["times"][0]
    own = f" A run of its own: {origin(found['run'])}" if "run" in found else ""
    return "\n\n".join(
        [
            "### More visual tokens",
            f"LLaVA of {shape['layers']} layers, pruned before layer 2.{own}",
            table(head, rows),
            "Bytes that the layer whose attention is read adds at most, in MiB:",
            table(["Visual tokens", *ways], weighed),
            f"Between the last two sizes they grow with the number of visual tokens to the power {power}.",
        ]
    )


def origin(result: dict[str, Any]) -> str:
    """Where the numbers come from."""
    machine, config, versions = result["hardware"], result["config"], result["versions"]
    where = machine.get("gpu") or f"{machine['cpu']}, {result['threads']} threads"
    named = ", ".join(f"{name} {number}" for name, number in versions.items())
    clock = "" if config["clock"] == "wall" else ", processor time"
    return (
        f"{config['layers']} layers, width {config['hidden']}, {config['text']} words; {config['repeats']} runs of each"
        f" way, {config['tokens']} tokens decoded after each, {round(result['seconds'] / 60)} minutes in all; {where},"
        f" load {machine['load']:.1f} at the start{clock}; {named}; {result['time'][:10]}."
    )


def update(source: Path, root: Path = ROOT, more: Path | None = None) -> None:
    """Store the results and write the tables; with `more`, those of more visual tokens are that run's."""
    result = json.loads(source.read_text(encoding="utf-8"))
    if more is not None:
        other = json.loads(more.read_text(encoding="utf-8"))
        run = {name: other[name] for name in ("config", "hardware", "threads", "versions", "time", "seconds")}
        result["scaling"] = other["scaling"] | {"run": run}
    target = root / "benchmarks" / "results" / "overhead.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    page = root / "benchmarks" / "README.md"
    text = page.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{page} must hold {BEGIN} and {END}, once each.")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    page.write_text(f"{before}{BEGIN}\n{section(result)}\n{END}{after}", encoding="utf-8")


def main(words: list[str] | None = None) -> int:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", type=Path, help="what overhead.py has written")
    parser.add_argument("--scaling", type=Path, help="take what `overhead.py --family --scaling` has written from here")
    chosen = parser.parse_args(words)
    update(chosen.result, more=chosen.scaling)
    return 0


if __name__ == "__main__":
    sys.exit(main())
