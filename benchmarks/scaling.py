"""How the cost of pruning grows with the number of visual tokens, on models of LLaVA's shape."""

from __future__ import annotations

import argparse
import math
from typing import Any

import torch
from comparison import compared, described
from prompts import Prompt, plan, sizes_of
from timing import measure, peak_memory
from variants import Dense, Front, Ideal, Pruned, Usual, Variant

__all__ = ["growth", "memory_of_scoring", "scaling"]

TIMED = (1, 5)
"""Images of the prompts that are timed: at 24 x 24 tokens an image, 576 and 2,880."""

WEIGHED = (1, 2, 3, 5)
"""Images of the prompts whose scoring layer's memory is measured."""


def scaling(options: argparse.Namespace) -> dict[str, Any]:
    """All ways at two widths and numbers of tokens, and the memory of the scoring layer at four."""
    widths = (options.hidden // 2, options.hidden)
    return {
        "times": [timed(images, hidden, options) for hidden in widths for images in TIMED],
        "memory": memory_of_scoring(WEIGHED, options.side, options.hidden // 2, options),
    }


def timed(images: int, hidden: int, options: argparse.Namespace) -> dict[str, Any]:
    """All ways to run one prompt of some images, of which `keep` tokens are kept before layer 2."""
    layers = options.layers
    prompt = a_prompt(images, options.side, hidden, layers, options, options.tokens + 1)
    pruned = Pruned(prompt, plan("decoder", options.keep, prompt.images, layers))
    kept = pruned.kept()
    ways: dict[str, Variant] = {"dense": Dense(prompt), "front": Front(prompt), "pruned": pruned}
    ways |= {"ideal": Ideal(prompt, kept), "usual": Usual(prompt, kept)}
    memory = {name: peak_memory(way, options.device) for name, way in ways.items()}
    times = measure(ways, options)
    found = {name: described(name, times, memory) for name in ways}
    return {"visual": prompt.images, "hidden": hidden, "layers": layers, "ways": found, "ratios": compared(times)}


def a_prompt(images: int, side: int, hidden: int, layers: int, options: argparse.Namespace, steps: int) -> Prompt:
    """A LLaVA and a prompt of some images."""
    return Prompt(
        "llava",
        sizes_of("llava", side, hidden, layers),
        text=options.text,
        images=images,
        steps=steps,
        device=options.device,
        dtype=getattr(torch, options.dtype),
    )


def memory_of_scoring(images: tuple[int, ...], side: int, hidden: int, options: argparse.Namespace) -> dict[str, Any]:
    """Bytes that the layer whose attention is read adds at most, and the power of the tokens that they grow with."""
    rows = []
    for count in images:
        prompt = a_prompt(count, side, hidden, 4, options, 1)
        pruned = Pruned(prompt, plan("decoder", options.keep, prompt.images, 4))
        scoring = prompt.adapter.decoder_layers[1]
        ways: dict[str, Variant] = {"pruned": pruned, "usual": Usual(prompt, pruned.kept())}
        rows.append({"visual": prompt.images} | {n: peak_memory(w, options.device, scoring) for n, w in ways.items()})
    return {"tokens": rows, "growth": {name: growth(rows, name) for name in ("pruned", "usual")}}


def growth(rows: list[dict[str, int]], name: str) -> float:
    """The power of the tokens that bytes grow with, between the last two sizes."""
    before, after = rows[-2:]
    return math.log(after[name] / before[name]) / math.log(after["visual"] / before["visual"])
