"""What pruning costs beside what it saves: time and memory against an ideal without any overhead.

Random models of every family read one image and a question and are pruned by four plans. The ways to do this
(`variants.py`) take turns in one process, in a new order each time, and are compared run by run: what else the machine
does meets all of them alike. The image's features are computed beforehand, once for all ways.

    python benchmarks/overhead.py --output overhead.json
    python benchmarks/overhead.py --family llava qwen3_vl --repeats 20
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import torch
from comparison import RATIOS, family
from prompts import families, why_not
from rich.console import Console
from rich.table import Table
from scaling import scaling
from timing import keep_freed_memory, provenance
from transformers.utils import logging

QUICK = {"side": 8, "keep": 8, "text": 11, "hidden": 64, "layers": 6, "repeats": 3, "tokens": 2}
UNITS = {
    "prefill_ms": "median milliseconds of a prefill",
    "decode_ms_per_token": "median milliseconds of a token decoded",
    "peak_memory": "bytes of tensors that a prefill holds at most, KV cache included, weights not",
    "scoring_ms": "median milliseconds of a prefill in which policies score and select, measured by itself",
    "ratios": "median of the ratios of runs next to each other; low and high: 95 % bootstrap interval of the median",
}


def run(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """The whole comparison, as JSON; written after every family, so that an interrupted run leaves something."""
    keep_freed_memory()
    if options.threads:
        torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"families": {}, "left_out": {}, "ranges": {}} | provenance(options)
    result |= {"units": UNITS} | found_before(options)
    start = time.perf_counter() - result.get("seconds", 0)
    for name in options.family:
        if name in result["families"]:
            continue
        result["left_out"].pop(name, None)
        try:
            with torch.inference_mode():
                result["families"][name] = family(name, options)
            console.print(table(name, result["families"][name]))
        except Exception as error:
            result["left_out"][name] = f"{type(error).__name__}: {error}"
            console.print(f"{name} is left out: {error}", style="red")
        gc.collect()
        result |= summary(result["families"]) | {"seconds": round(time.perf_counter() - start)}
        write(result, options.output)
    if options.scaling:
        with torch.inference_mode():
            result["scaling"] = scaling(options)
        result["seconds"] = round(time.perf_counter() - start)
        write(result, options.output)
    return result


def found_before(options: argparse.Namespace) -> dict[str, Any]:
    """What a run to go on with has measured; nothing without `--resume`."""
    if not options.resume or not options.output.exists():
        return {}
    found: dict[str, Any] = json.loads(options.output.read_text(encoding="utf-8"))
    other = ("family", "scaling", "resume")
    theirs, ours = (
        {name: value for name, value in each.items() if name not in other}
        for each in (found["config"], provenance(options)["config"])
    )
    if theirs != ours:
        raise SystemExit(f"--resume: {options.output} was measured with {theirs}, and not with {ours}.")
    return found


def measured(found: dict[str, Any], ratio: str) -> Iterator[tuple[float, str]]:
    """A ratio of every family and plan that has it, and which they are."""
    for name, each in found.items():
        for plan, values in each["plans"].items():
            if ratio in values["ratios"]:
                yield values["ratios"][ratio]["median"], f"{name}, {plan}"


def summary(found: dict[str, Any]) -> dict[str, Any]:
    """Each ratio's median over all families and plans, and between which it lies."""
    medians: dict[str, Any] = {}
    ranges = {}
    for ratio in RATIOS:
        values = sorted(measured(found, ratio))
        if values:
            medians[ratio] = median(value for value, _ in values)
            ranges[ratio] = {"lowest": values[0], "highest": values[-1], "measured": len(values)}
    return medians | {"ranges": ranges}


def table(name: str, found: dict[str, Any]) -> Table:
    """One family for people."""
    shape, dense = found["shape"], found["dense"]
    head = f"{name}: {shape['visual']} visual tokens of {shape['prompt']}, {shape['layers']} layers"
    columns = ("way", "prefill, ms", "per token, ms", "memory, MiB", "ratio to ideal", "decoding")
    shown = Table(*columns, title=head, title_justify="left")
    rows = {"dense": dense, "front": found["front"]}
    rows |= {f"{plan} {way}": each for plan, values in found["plans"].items() for way, each in values["ways"].items()}
    for label, each in rows.items():
        plan, _, way = label.partition(" ")
        ratios = found["plans"][plan]["ratios"] if way == "pruned" else {}
        shown.add_row(
            label,
            f"{each['prefill_ms']:.2f}",
            f"{each['decode_ms_per_token']:.2f}",
            f"{each['peak_memory'] / 2**20:.1f}",
            *(interval(ratios.get(key)) for key in ("ratio_to_ideal", "decode_ratio_to_ideal")),
        )
    return shown


def interval(ratio: dict[str, float] | None) -> str:
    """A ratio and its interval."""
    return "" if ratio is None else f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]"


def write(result: dict[str, Any], output: Path | None) -> None:
    """Write the JSON, if it is asked for."""
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--family", nargs="*", metavar="NAME", help="families to measure; by default all that fit")
    parser.add_argument("--side", type=int, default=24, help="visual tokens along one edge of the image")
    parser.add_argument("--keep", type=int, default=64, help="visual tokens that stay in the end")
    parser.add_argument("--text", type=int, default=128, help="words of the prompt")
    parser.add_argument("--hidden", type=int, default=1024, help="width, a multiple of 64")
    parser.add_argument("--layers", type=int, default=16, help="decoder layers, at least 6")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each way")
    parser.add_argument("--tokens", type=int, default=2, help="tokens decoded after each prefill")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument("--threads", type=int, help="of torch on the CPU; with one, others disturb least")
    parser.add_argument("--clock", default="wall", choices=("wall", "cpu"), help="cpu: processor time")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few runs, to see that it works")
    parser.add_argument("--scaling", action=argparse.BooleanOptionalAction, help="more tokens too; with all families")
    parser.add_argument("--resume", action="store_true", help="go on: families that --output has stay as they are")
    parser.add_argument("--output", "--json", type=Path, help="write everything here, as JSON")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(QUICK)
    for name in options.family or ():
        if (why := why_not(name)) is not None:
            parser.error(f"--family {name}: {why}")
    if options.resume and options.output is None:
        parser.error("--resume: there is no --output to go on with")
    if options.layers < 6 or options.hidden % 64:
        parser.error(f"--layers {options.layers} --hidden {options.hidden}: at least 6 layers, a multiple of 64 wide")
    if options.scaling is None:
        options.scaling = options.family is None
    if options.family is None:
        options.family = list(families())
    return options


def main() -> None:
    """Run and show."""
    logging.set_verbosity_error()
    options, console = parse(), Console(width=max(Console().width, 110))
    result = run(options, console)
    for ratio, between in result["ranges"].items():
        (low, first), (high, last) = between["lowest"], between["highest"]
        console.print(f"{ratio}: median {result[ratio]:.3f}, {low:.3f} ({first}) to {high:.3f} ({last})", style="bold")
    if "scaling" in result:
        for row in result["scaling"]["times"]:
            ratio = interval(row["ratios"]["usual_over_pruned"])
            size = f"{row['visual']} visual tokens, {row['hidden']} wide"
            console.print(f"usual over pruned at {size}: {ratio}", style="bold")
        for way, power in result["scaling"]["memory"]["growth"].items():
            console.print(f"memory of the scoring layer, {way}: grows with the tokens to the power {power:.2f}")


if __name__ == "__main__":
    main()
