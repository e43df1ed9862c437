"""What pruning costs beside what it saves: time and memory against an ideal without any overhead.

A random LLaVA of realistic shape reads one image and a question, 576 visual tokens of which 64 stay before decoder
layer 2. Four ways to do this (`variants.py`) take turns in one process, in a new order each time, and are compared run
by run: what else the machine does meets all of them alike. The image's features are computed beforehand, once for all.

    python benchmarks/overhead.py --repeats 20 --json overhead.json
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import platform
import random
import time
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from math import isqrt
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself otherwise

import torch
from rich.console import Console
from rich.table import Table
from variants import Prompt, Variant, variants

Times = dict[str, list[float]]


def wait(device: str) -> None:
    """Let a GPU finish, so that clocks read what they should."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def timed(options: argparse.Namespace, action: Callable[[], Any]) -> float:
    """Seconds that `action` takes."""
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    wait(options.device)
    start = clock()
    action()
    wait(options.device)
    return clock() - start


def decode_tokens(way: Variant, token: torch.Tensor, steps: int) -> None:
    """Run single tokens, one after the other."""
    for _ in range(steps):
        way.step(token)


def measure(ways: dict[str, Variant], options: argparse.Namespace) -> tuple[Times, Times]:
    """Seconds of each prefill and of each token decoded, all ways in turns; one round more, thrown away, warms up."""
    prefill: Times = {name: [] for name in ways}
    decode: Times = {name: [] for name in ways}
    order, shuffle = list(ways), random.Random(0).shuffle
    token, steps = torch.full((1, 1), 7, device=options.device), options.tokens
    gc.collect()
    gc.disable()
    try:
        for _ in range(options.repeats + 1):
            shuffle(order)
            for name in order:
                way = ways[name]
                with way.ready():
                    prefill[name].append(timed(options, way.prefill))
                    way.step(token)  # the first one after a prefill pays for cold caches
                    decode[name].append(timed(options, partial(decode_tokens, way, token, steps)) / steps)
                way.cache = None
            gc.collect()
    finally:
        gc.enable()
    return tuple({name: taken[1:] for name, taken in times.items()} for times in (prefill, decode))  # type: ignore[return-value]


def paired(times: Times, above: str, below: str) -> dict[str, float]:
    """Median of the ratios run by run, and the interval that holds the true median with 95 % confidence."""
    ratios = [a / b for a, b in zip(times[above], times[below], strict=True)]
    resample = random.Random(0)
    medians = sorted(median(resample.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"median": median(ratios), "low": medians[49], "high": medians[-50], "pairs": len(ratios)}


def peak_memory(way: Variant, device: str) -> int:
    """Bytes of tensors that a prefill holds at most, beyond weights and inputs; its KV cache included."""
    with way.ready():
        if device.startswith("cuda"):
            way.prefill()
            way.cache = None
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            way.prefill()
            peak = torch.cuda.max_memory_allocated(device) - before
        else:
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as run:
                way.prefill()
            events = run.profiler.kineto_results.events()
            sizes = [(event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]"]
            held = peak = 0
            for _, size in sorted(sizes, key=lambda event: event[0]):
                held += size
                peak = max(peak, held)
    way.cache = None
    return peak


def hardware(device: str) -> dict[str, Any]:
    """Where this ran."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    found = {"cpu": names[0] if names else platform.processor(), "cores": os.cpu_count(), "load": os.getloadavg()[0]}
    return found | ({"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {})


def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole comparison, as JSON."""
    dtype = getattr(torch, options.dtype)
    if options.threads:
        torch.set_num_threads(options.threads)
    prompt = Prompt(
        isqrt(options.visual), options.text, options.keep, options.device, dtype, options.hidden, options.layers
    )
    with torch.inference_mode():
        ways = variants(prompt)
        memory = {name: peak_memory(way, options.device) for name, way in ways.items()}
        prefill, decode = measure(ways, options)
    ratios = {
        "ratio_to_ideal": paired(prefill, "pruned", "ideal"),
        "decode_ratio_to_ideal": paired(decode, "pruned", "ideal"),
        "speedup_over_dense": paired(prefill, "dense", "pruned"),
        "decode_speedup_over_dense": paired(decode, "dense", "pruned"),
        "usual_over_pruned": paired(prefill, "usual", "pruned"),
    }
    return {
        **{name: ratio["median"] for name, ratio in ratios.items()},
        "intervals": ratios,
        "prefill_ms": {name: 1000 * median(taken) for name, taken in prefill.items()},
        "decode_ms_per_token": {name: 1000 * median(taken) for name, taken in decode.items()},
        "peak_memory": memory,
        "units": {
            "peak_memory": "bytes of tensors in a prefill, weights not included",
            "ratios": "paired medians, 95 %",
        },
        "config": vars(options) | {"prompt": prompt.length},
        "hardware": hardware(options.device),
        "threads": torch.get_num_threads(),
        "versions": {name: version(name) for name in ("torch", "transformers")} | {"python": platform.python_version()},
        "time": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def show(result: dict[str, Any]) -> None:
    """Two tables for people."""
    config, console = result["config"], Console()
    where = result["hardware"].get("gpu", f"{result['hardware']['cpu']}, {result['threads']} threads")
    title = f"{config['visual']} visual tokens, {config['keep']} kept before layer 2 of {config['layers']}; {where}"
    table = Table("way", "prefill, ms", "per token, ms", "peak memory, MiB", title=title)
    for name in result["prefill_ms"]:
        numbers = result["prefill_ms"][name], result["decode_ms_per_token"][name], result["peak_memory"][name] / 2**20
        table.add_row(name, *(f"{number:.2f}" for number in numbers))
    console.print(table)
    ratios = Table("ratio", "median", "95 % interval")
    for name, ratio in result["intervals"].items():
        ratios.add_row(name, f"{ratio['median']:.3f}", f"{ratio['low']:.3f} to {ratio['high']:.3f}")
    console.print(ratios)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("--visual", type=int, default=576, help="visual tokens, a square number")
    parser.add_argument("--keep", type=int, default=64, help="visual tokens that stay")
    parser.add_argument("--text", type=int, default=64, help="text tokens")
    parser.add_argument("--hidden", type=int, default=1024, help="width, a multiple of 64")
    parser.add_argument("--layers", type=int, default=12, help="decoder layers, at least 3")
    parser.add_argument("--repeats", type=int, default=20, help="runs of each way")
    parser.add_argument("--tokens", type=int, default=16, help="tokens decoded after each prefill")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16", "float16"))
    parser.add_argument(
        "--threads", type=int, help="of torch on the CPU; with one, others on the machine disturb least"
    )
    parser.add_argument(
        "--clock", default="wall", choices=("wall", "cpu"), help="cpu: processor time, less disturbed by other programs"
    )
    parser.add_argument("--quick", action="store_true", help="a tiny shape and few runs, to see that it works")
    parser.add_argument("--json", type=Path, help="write everything here")
    options = parser.parse_args(arguments)
    if options.quick:
        vars(options).update(visual=64, keep=16, text=8, hidden=64, layers=4, repeats=3, tokens=2)
    if isqrt(options.visual) ** 2 != options.visual or not 0 < options.keep <= options.visual:
        parser.error(
            f"--visual {options.visual} --keep {options.keep}: visual must be a square number, of which keep stay"
        )
    return options


def main() -> None:
    """Run, show and write."""
    options = parse()
    result = run(options)
    show(result)
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2, default=str) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
