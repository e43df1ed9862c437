"""`prunekit bench`: its options, and its tables."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

from jsonargparse import ArgumentParser

from prunekit._options import read_options
from prunekit.budget import Budget
from prunekit.errors import ConfigError
from prunekit.latency.protocol import Protocol
from prunekit.latency.request import AS_CONFIGURED, Request, bench
from prunekit.latency.result import Benchmark, Ratio, Row

__all__ = ["main", "show"]

PARTS = ("vision", "language", "prefill", "decode")


def main(words: Sequence[str]) -> int:
    """Run the command, and return its exit code."""
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler announces itself otherwise
    chosen = vars(read_options(_parser(), words))
    as_json = chosen.pop("json")
    settings = {name: chosen.pop(name) for name in ("decode_tokens", "repeats", "warmup", "seed")}
    protocol = Protocol(batch=tuple(chosen.pop("batch")), **settings)
    budgets = tuple(_budget(each) for each in chosen.pop("budget") if each != AS_CONFIGURED)
    sizes = dict(_size(each) for each in chosen.pop("size") or ())
    methods = tuple(chosen.pop("methods"))
    found = bench(Request(**chosen, methods=methods, budgets=budgets, protocol=protocol, sizes=sizes))
    print(json.dumps(found.to_dict(), indent=1)) if as_json else show(found)
    return 0


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="prunekit bench",
        description="Time methods and the dense model under the same attention, in turns: vision encoder, prefill,"
        " decoding, whole answers; with the scorer, peak memory, and how near all that is to what the machine can do.",
        exit_on_error=False,
    )
    parser.add_argument("model", type=str, help="tiny, a local folder, a hub name; with --random a preset or a family.")
    parser.add_argument("methods", type=str, nargs="+", help="Methods, as in 'prunekit flops'.")
    parser.add_argument(
        "--budget",
        type=int | float | str,
        nargs="+",
        default=[0.25],
        help=f"Average visual tokens per decoder layer, or flops=0.3, tokens=64, ...; {AS_CONFIGURED}: as they are.",
    )
    parser.add_argument("--batch", type=int, nargs="+", default=list(Protocol.batch), help="Samples at a time.")
    parser.add_argument("--text-tokens", type=int, default=Request.text_tokens, help="Tokens that are not visual.")
    for name, text in (
        ("decode_tokens", "Tokens decoded after the prompt."),
        ("repeats", "Rounds; in each of them every method takes its turn, in a random order."),
        ("warmup", "Rounds before them that do not count."),
        ("seed", "Of the order."),
    ):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(Protocol, name), help=text)
    for name, text in (
        ("device", "auto, cpu, cuda or cuda:<i>."),
        ("dtype", "float32, bfloat16 or float16."),
        ("attention", "sdpa or eager, of the dense model and all methods."),
        ("timer", "auto, cuda or wall; refused where the device does not have it."),
    ):
        parser.add_argument(f"--{name}", type=str, default=getattr(Request, name), help=text)
    parser.add_argument("--random", action="store_true", help="Random weights: MODEL is a config, preset or family.")
    parser.add_argument(
        "--size", type=str, nargs="+", default=[], metavar="KEY=N", help="Of a random family: hidden=1024 layers=12."
    )
    parser.add_argument("--roofline", type=bool, default=True, help="Count operations and bytes, measure the peaks.")
    parser.add_argument("--json", action="store_true", help="Print JSON.")
    parser.add_argument("--output", type=str | None, default=None, metavar="FILE", help="Write JSON there.")
    return parser


def _budget(given: int | float | str) -> int | float | Budget:
    return Budget.parse(given) if isinstance(given, str) else given


def _size(text: str) -> tuple[str, int]:
    key, _, number = text.partition("=")
    if not number.isdigit():
        raise ConfigError(f"--size: {text!r} is no size; write it as hidden=1024.")
    return key, int(number)


def show(found: Benchmark) -> None:
    """Print the tables."""
    from rich.console import Console

    console = Console() if sys.stdout.isatty() else Console(width=180)
    prompt, model = found.setup["prompt"], found.setup["model"]
    row = found.rows[0]
    console.print(
        f"{model['class']}, {model['parameters'] / 1e6:,.1f} M weights in {row.dtype} on {row.device}, attention"
        f" {row.attention[0]} (encoder {row.attention[1]}); {prompt['visual']} visual and {prompt['text']} other"
        f" tokens, {row.decode_tokens} decoded; medians of {len(row.seconds['prefill'])} rounds, [95 % intervals].",
        highlight=False,
    )
    console.print(_times(found))
    if found.peaks is not None:
        console.print(_roofline(found))
        console.print(
            f"Peaks of this machine, measured: {found.peaks.flops / 1e9:,.0f} GFLOP/s,"
            f" {found.peaks.bandwidth / 1e9:,.1f} GB/s.",
            highlight=False,
        )
    for each in found.skipped:
        console.print(f"Left out: {each.reason}", highlight=False, markup=False)


def _table(title: str, texts: Sequence[str], numbers: Sequence[str], rows: Sequence[Sequence[str]]) -> Any:
    from rich.table import Table

    table = Table(title=title, header_style="bold")
    for name in texts:
        table.add_column(name, no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(*row)
    return table


def _times(found: Benchmark) -> Any:
    head = ["batch", "vision ms", "scorer ms", "prefill ms", "faster", "ms/token", "faster", "answer ms", "faster"]
    rows = []
    for row in found.rows:
        scorer = None if row.scorer_seconds is None else 1000 * row.scorer_seconds
        cells = [row.label, str(row.batch), _ms(row.milliseconds("vision")), _ms(scorer)]
        for part in ("prefill", "decode", "generate"):
            cells += [_ms(row.milliseconds(part)), _ratio(found, row, part)]
        rows.append([*cells, f"{row.throughput:.2f}", f"{row.peak_memory / 2**20:,.1f}"])
    return _table("Times and memory", ["method"], [*head, "samples/s", "peak MiB"], rows)


def _roofline(found: Benchmark) -> Any:
    rows = []
    for row in found.rows:
        for part in (part for part in PARTS if part in row.bounds and part in row.seconds):
            bound, measured = row.bounds[part], row.milliseconds(part) or float("inf")
            work = "" if bound.flops is None else f"{bound.flops / 1e9:,.3f}"
            share = f"{100_000 * bound.seconds / measured:.0f} %"
            numbers = [work, f"{bound.bytes / 1e6:,.2f}", _ms(1000 * bound.seconds), bound.limit, _ms(measured), share]
            expected = found.expected_speedup(row) if part == "prefill" else None
            faster = "" if expected is None or row is found.dense(row) else f"{expected:.2f}"
            rows.append([row.label, part, str(row.batch), *numbers, faster])
    head = ["batch", "GFLOP", "MB", "bound ms", "limit", "measured ms", "reached", "faster by FLOPs"]
    return _table("Roofline", ["method", "part"], head, rows)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _ratio(found: Benchmark, row: Row, part: str) -> str:
    """The speed-up; the dense row itself has none, but says that it is there."""
    if row is found.dense(row):
        return "1"
    ratio: Ratio = found.speedup(row, part)
    return f"{ratio.median:.2f} \\[{ratio.low:.2f}, {ratio.high:.2f}]"
