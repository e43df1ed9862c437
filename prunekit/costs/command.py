"""`prunekit flops`: what methods cost on a model, without its weights."""

from __future__ import annotations

import json
import re
from typing import Any

from jsonargparse import ArgumentParser

from prunekit.errors import ConfigError

__all__ = ["flops_parser", "run_flops"]


def flops_parser() -> ArgumentParser:
    """The options of the command."""
    parser = ArgumentParser(
        prog="prunekit flops",
        description="Count the multiply-adds of a prefill and of decoding, by part, from a model's config alone.",
        exit_on_error=False,
    )
    add = parser.add_argument
    add("model", type=str, help="A preset such as llava-1.5-7b, tiny, a folder with a config.json, or a hub name.")
    add("methods", type=str, nargs="*", help="Methods: STAR, or '{class_path: FastV, init_args: {layer: 3}}'.")
    add("--budget", type=str, default="0.25", help="Average visual tokens per layer, flops=0.3, kv=0.2, ..., or none.")
    add("--text-tokens", type=int, default=64, help="Tokens of a sample that are not visual.")
    add("--images", type=int, default=1, help="Images of a sample.")
    add("--image-size", type=str, default=None, metavar="HxW", help="Height and width in pixels, or one edge.")
    add("--decode-tokens", type=int, default=32, help="Tokens generated after the prefill.")
    add("--batch", type=int, default=1, help="Samples.")
    add("--dtype", type=str, default="bfloat16", help="Of the KV cache.")
    add("--convention", type=str, default=None, help="Also what a paper with this formula would print: fastv, ...")
    add("--json", action="store_true", help="Print one JSON object.")
    return parser


def run_flops(chosen: Any) -> None:
    """Count, and print a table or JSON."""
    from prunekit.costs import cost

    found = cost(
        chosen.model,
        *chosen.methods,
        budget=_budget(chosen.budget),
        text_tokens=chosen.text_tokens,
        images=chosen.images,
        image_size=_size(chosen.image_size),
        batch=chosen.batch,
        decode_tokens=chosen.decode_tokens,
        dtype=chosen.dtype,
        convention=chosen.convention,
    ).to_dict()
    print(json.dumps(found, indent=2)) if chosen.json else _show(found)


def _budget(text: str) -> int | float | str | None:
    if text == "none":
        return None
    if "=" in text:
        return text
    try:
        return int(text) if re.fullmatch(r"[+-]?\d+", text) else float(text)
    except ValueError:
        raise ConfigError(
            f"--budget {text!r}: allowed are shares such as 0.25, numbers such as 64, measures such as"
            " flops=0.3, kv=0.2 and tokens=64, and none."
        ) from None


def _size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)(?:x(\d+))?", text)
    if found is None:
        raise ConfigError(f"--image-size {text!r}: allowed are a height and a width such as 672x448, or one edge.")
    return int(found[1]), int(found[2] or found[1])


def _show(found: dict[str, Any]) -> None:
    """Print a table."""
    from rich.console import Console
    from rich.table import Table

    pruned = found.get("pruned", [])
    rows = [found["dense"], *(pruned if isinstance(pruned, list) else [pruned])]
    asked = found["prompt"]
    title = (
        f"{found['model']}: multiply-adds for {asked['batch']} x ({asked['images']} images of"
        f" {asked['image_size'][0]}x{asked['image_size'][1]}, {asked['visual_tokens']} visual and"
        f" {asked['text_tokens']} other tokens, {asked['decode_tokens']} generated)"
    )
    table = Table(title=title, header_style="bold")
    table.add_column("method", no_wrap=True)
    paper = [found["dense"]["published"]["convention"]] if "published" in found["dense"] else []
    for name in [*rows[0]["macs"], "total", "of dense", "KV cache", *paper]:
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        share = f"{100 * row['total_macs'] / rows[0]['total_macs']:.0f} %"
        counts = [_short(number) for number in (*row["macs"].values(), row["total_macs"])]
        printed = [f"{_short(row['published']['total'])}, {100 * row['published']['share']:.0f} %"] if paper else []
        table.add_row(row["name"], *counts, share, f"{row['kv_bytes'] / 2**20:.1f} MiB", *printed)
    console = Console()
    (console if console.width >= 100 else Console(width=140)).print(table)


def _short(number: float) -> str:
    """A count with a unit: 4.25 T."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:g}"
