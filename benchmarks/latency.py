"""Whether fewer operations become less time: measured speed-ups beside those that operations predict.

```
python benchmarks/latency.py --output benchmarks/results/latency.json
```

A random model of LLaVA's shape: hidden 1024, 12 layers, 576 visual and 64 other tokens, of which 64 visual ones are
kept, on 2 threads. All methods and the dense model take turns under the same attention. At batch size 4 a prefill is
bound by its operations, also where few tokens are left, and the measured speed-up is to be within 15 % of the expected
one: every part at the rate of operations that it has in the dense model. At batch size 1 it need not be: products of
few rows wait for weights. The documentation shows the tables that `section` makes of the file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from prunekit import Keep, Stage
from prunekit.adapter import adapter_for
from prunekit.latency import Benchmark, Protocol, Row, measure
from prunekit.latency.source import at_length
from prunekit.models.tiny import tiny_random
from prunekit.policies import FastV, SelfAttention
from prunekit.provenance import hardware, versions

__all__ = ["main", "section"]

TOLERANCE = 0.15
"""How far the measured speed-up may be from the expected one."""

BOUND = 4
"""Batch size from which on a prefill is taken to be bound by its operations."""

PARTS = ("vision", "language", "prefill", "decode", "generate")


def main(words: list[str] | None = None) -> int:
    """Measure, print, write; returns 1 where a speed-up is not as expected, unless the run is a quick one."""
    options = parse(words)
    torch.set_num_threads(options.threads)
    started = time.time()
    found = measured(options)
    result = found.to_dict() | {"check": [check(found, row) for row in found.rows if row.name != "dense"]}
    result["setup"] |= {
        "config": {name: value for name, value in vars(options).items() if name != "output"},
        "hardware": hardware(torch.device("cpu")),
        "versions": versions(),
        "wall_s": round(time.time() - started, 1),
    }
    if options.output is not None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(section(result))
    return 0 if options.quick or all(each["within"] for each in result["check"] if each["bound"]) else 1


def parse(words: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a small model, to see that all of it runs")
    for name, value in (("hidden", 1024), ("layers", 12), ("side", 24), ("keep", 64), ("text", 64)):
        parser.add_argument(f"--{name}", type=int, default=value)
    for name, value in (("repeats", 5), ("threads", 2), ("decode-tokens", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, BOUND])
    parser.add_argument("--attention", choices=("sdpa", "eager"), default="sdpa")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args(words)
    if options.quick:
        small = {"hidden": 128, "layers": 4, "side": 8, "keep": 16, "repeats": 2, "decode_tokens": 2}
        vars(options).update(small)
    return options


def measured(options: argparse.Namespace) -> Benchmark:
    """The dense model, pruned before its language model, and pruned inside it."""
    hidden = options.hidden
    sizes: dict[str, Any] = {"hidden": hidden, "layers": options.layers, "vocab": 1024, "vision_hidden": hidden // 4}
    sizes |= {"heads": hidden // 64, "key_heads": hidden // 64, "intermediate": hidden * 8 // 3 // 16 * 16}
    sizes |= {"image_size": 14 * options.side, "patch_size": 14, "std": 0.02}
    model, make_inputs = tiny_random("llava", attn_implementation=options.attention, **sizes)
    inputs = at_length(make_inputs(text=1), adapter_for(model), options.text)
    methods = {
        "before the language model": Stage("input", SelfAttention("embedding"), Keep(tokens=options.keep)),
        "FastV, before layer 2": FastV(keep=options.keep, layer=2),
    }
    protocol = Protocol(tuple(options.batch), decode_tokens=options.decode_tokens, repeats=options.repeats)
    return measure(model, inputs, methods, protocol)


def check(found: Benchmark, row: Row) -> dict[str, Any]:
    """The measured speed-up of a prefill against the expected one."""
    speedup, expected = found.speedup(row), found.expected_speedup(row)
    assert expected is not None  # operations have been counted
    gap = speedup.median / expected - 1
    return {
        "name": row.label,
        "batch": row.batch,
        "bound": row.batch >= BOUND,
        "measured": speedup.median,
        "low": speedup.low,
        "high": speedup.high,
        "expected": expected,
        "operations": found.flops_speedup(row),
        "gap": gap,
        "within": abs(gap) <= TOLERANCE,
    }


# --- the table of the documentation ----------------------------------------------------------------------------------


def section(result: dict[str, Any]) -> str:
    """Where the numbers come from, times, and the check, in Markdown."""
    setup, config = result["setup"], result["setup"]["config"]
    machine, dense = setup["hardware"], result["rows"][0]
    text = (
        f"A random LLaVA of hidden {config['hidden']}, {config['layers']} layers, {config['side'] ** 2} visual and"
        f" {config['text']} other tokens; {config['keep']} visual tokens kept; {dense['dtype']}, attention"
        f" {dense['attention']['language']}, {config['threads']} threads of {machine['processor']};"
        f" {config['repeats']} rounds. Measured peaks: {result['peaks']['flops'] / 1e9:,.0f} GFLOP/s,"
        f" {result['peaks']['bandwidth'] / 1e9:,.1f} GB/s."
    )
    times = table(
        ["", "Batch", *(f"{part}, ms" for part in PARTS), "scorer, ms", "peak, MiB"], map(timed, result["rows"])
    )
    rows = [[each["name"], str(each["batch"]), *checked(each)] for each in result["check"]]
    head = [
        "Prefill",
        "Batch",
        "Measured speed-up",
        "By operations, part by part",
        "By all operations",
        "Measured / expected",
    ]
    bounds = table(
        ["", "Part", "Batch", "GFLOP", "MB", "Bound, ms", "Limit", "Measured, ms", "Reached"],
        [line for row in result["rows"] for line in reached(row)],
    )
    return "\n\n".join([text, times, table(head, rows), bounds])


def table(head: list[str], rows: Any) -> str:
    """A table in Markdown, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def timed(row: dict[str, Any]) -> list[str]:
    """A row's medians."""
    scorer = "" if row["scorer_seconds"] is None else f"{1000 * row['scorer_seconds']:,.1f}"
    return [
        row["name"],
        str(row["batch"]),
        *(f"{row['median_ms'][part]:,.1f}" for part in PARTS),
        scorer,
        f"{row['peak_memory'] / 2**20:,.1f}",
    ]


def checked(each: dict[str, Any]) -> list[str]:
    """A line of the check."""
    measured = f"{each['measured']:.2f} [{each['low']:.2f}, {each['high']:.2f}]"
    return [measured, f"{each['expected']:.2f}", f"{each['operations']:.2f}", f"{1 + each['gap']:.2f}"]


def reached(row: dict[str, Any]) -> list[list[str]]:
    """How near each part of a row is to its bound."""
    return [
        [
            row["name"],
            part,
            str(row["batch"]),
            f"{bound['flops'] / 1e9:,.2f}",
            f"{bound['bytes'] / 1e6:,.1f}",
            f"{1000 * bound['seconds']:,.1f}",
            bound["limit"],
            f"{row['median_ms'][part]:,.1f}",
            f"{100 * bound['share_of_measured']:.0f} %",
        ]
        for part, bound in ((part, row["bounds"][part]) for part in ("vision", "language", "prefill", "decode"))
    ]


if __name__ == "__main__":
    sys.exit(main())
