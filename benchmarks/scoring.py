"""What each method's scoring costs, in time and in multiply-adds, on the widths of LLaVA-1.5-7B.

Multiply-adds are those of the scorer's part of a whole prefill, counted without weights (`prunekit.cost`). Time is that
of the scopes named `scorer...` in a profiled prefill: the attention rows that a method has read for it, and its own
selection. The timed model has the real widths, heads and encoder layers, but few decoder layers and thin MLPs, which no
method scores; methods are laid out over the depth it has.

    python benchmarks/scoring.py --output build/scoring.json
    python benchmarks/scoring.py --method FastV DivPrune --images 1
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself otherwise

import torch
from prompts import even_out
from rich.console import Console
from rich.table import Table
from timing import provenance

from prunekit import Keep, Method, Stage, cost, flops, policies, prune
from prunekit.adapter import adapter_for
from prunekit.errors import CostError, PrunekitError
from prunekit.models.tiny.builders import tiny_random
from prunekit.plan import Shape

PRESET = "llava-1.5-7b"
SHARE = 1 / 9  # of the visual tokens stays: 64 of 576
BASELINES = ("Random", "UniformGrid", "AveragePooling", "Downsampling")
SIZES = {"hidden": 4096, "heads": 32, "key_heads": 32, "vocab": 1024, "intermediate": 256, "layers": 4}
SIZES |= {"vision_hidden": 1024, "vision_heads": 16, "vision_layers": 24, "image_size": 336, "patch_size": 14}
QUICK = {"hidden": 64, "heads": 4, "key_heads": 4, "vision_hidden": 64, "vision_layers": 8, "image_size": 112}


def methods(names: list[str] | None, shape: Shape) -> dict[str, tuple[Stage | Method, ...]]:
    """Every method at the same share of tokens where it takes one, and the baselines at the input."""
    found: dict[str, tuple[Stage | Method, ...]] = {}
    for name in names or policies.__all__:
        cls = getattr(policies, name)
        if issubclass(cls, Method) and cls.reference is not None:
            found[name] = (at_share(cls, shape),)
        elif names or name in BASELINES:
            found[name] = (Stage("input", cls(), Keep(ratio=SHARE)),)
    return found


def at_share(cls: type[Method], shape: Shape) -> Method:
    """A method that keeps the share, or as it is published where its budget is something else."""
    knobs = {field.name for field in fields(cls)}  # type: ignore[arg-type]  # all methods are dataclasses
    return cls(keep=SHARE) if "keep" in knobs else cls.example(shape)  # type: ignore[call-arg]


@torch.inference_mode()
def milliseconds(model: Any, inputs: dict[str, Any], items: tuple[Stage | Method, ...], repeats: int) -> float:
    """The least time of the scopes `scorer...` in a prefill."""
    taken = []
    with prune(model, *items):
        for _ in range(repeats):
            with torch.profiler.profile(activities=activities(model.device.type)) as run:
                model(**inputs, logits_to_keep=1)
            events = [event for event in run.key_averages() if event.key.startswith("scorer.")]
            on_gpu = model.device.type == "cuda"
            taken.append(sum(e.device_time_total if on_gpu else e.cpu_time_total for e in events) / 1000)
            gc.collect()
    return min(taken)


def activities(device: str) -> list[Any]:
    """What the profiler records."""
    kinds = torch.profiler.ProfilerActivity
    return [kinds.CPU, kinds.CUDA] if device == "cuda" else [kinds.CPU]


def measure(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Every method at every number of images, as JSON; written after each, so that an interrupted run leaves some."""
    sizes = SIZES | (QUICK if options.quick else {})
    model, make_inputs = tiny_random("llava", seed=0, **sizes)
    even_out(model)
    model = model.to(options.device)
    result: dict[str, Any] = {"preset": PRESET, "share": SHARE, "sizes": sizes, "rows": []} | provenance(options)
    for images in options.images:
        inputs = {name: value.to(options.device) for name, value in make_inputs(images=images, text=64).items()}
        visual = images * (sizes["image_size"] // sizes["patch_size"]) ** 2
        timed = methods(options.method, adapter_for(model).shape)
        dense = cost(PRESET, images=images, text_tokens=64).dense.cost.total_macs
        milliseconds(model, inputs, (Stage("input", policies.Random(), Keep(ratio=SHARE)),), 1)  # warms up
        for name, items in methods(options.method, Shape(32, 24, 22)).items():
            row: dict[str, Any] = {"method": name, "visual_tokens": visual}
            try:
                scorer = cost(PRESET, list(items), images=images, text_tokens=64).pruned[0].cost.macs["scorer"]
            except CostError:  # the data decide how many stay: those of this prompt
                scorer = flops.count(model, inputs, list(timed[name])).macs["scorer"]
                row["counted"] = "on the timed model and its prompt"
            row |= {"macs": scorer, "share_of_dense": scorer / dense}
            try:
                row["ms"] = milliseconds(model, inputs, timed[name], options.repeats)
            except PrunekitError as error:
                row["time_refused"] = str(error)
            result["rows"].append(row)
            console.print(" ".join(f"{key} {value}" for key, value in row.items()), soft_wrap=True)
            if options.output is not None:
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return result


def table(rows: list[dict[str, Any]]) -> Table:
    """All rows for people."""
    shown = Table("method", "visual tokens", "multiply-adds", "of a dense prefill", "time, ms")
    for row in rows:
        macs, share = f"{row['macs'] / 1e9:.2f} G", f"{100 * row['share_of_dense']:.2f} %"
        shown.add_row(row["method"], str(row["visual_tokens"]), macs, share, f"{row['ms']:.1f}" if "ms" in row else "")
    return shown


def main() -> None:
    """Run and show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n\n")[0])
    parser.add_argument("--method", nargs="*", metavar="NAME", help="methods; by default all, and the baselines")
    parser.add_argument("--images", nargs="*", type=int, default=[1, 5], help="images of 576 visual tokens each")
    parser.add_argument("--repeats", type=int, default=1, help="profiled runs of each method")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny model, to see that it works")
    parser.add_argument("--output", type=Path, help="write everything here, as JSON")
    options, console = parser.parse_args(), Console(width=max(Console().width, 110))
    start = time.perf_counter()
    result = measure(options, console)
    console.print(table(result["rows"]))
    console.print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
