"""Tiny random models of full architectural shape, for tests, benchmarks and demonstrations: one builder a family."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from prunekit.models.tiny.builders.common import InputMaker, TinyInputs

__all__ = ["BUILDERS", "InputMaker", "TinyInputs", "tiny_random"]

BUILDERS = {
    "llava": "llava",
}
"""Families and the modules that build them; each has a function of the family's name."""


def tiny_random(family: str = "llava", seed: int = 0, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """A random model (float32, evaluation mode) and a function that makes inputs for it.

    Args:
        family: one of `BUILDERS`.
        seed: of the weights.
        sizes: fields of `Sizes`, and what the family's builder takes besides.

    Returns:
        The model and `make_inputs(batch=1, images=1, text=6, seed=0, videos=0)`, where `images`, `text` and `videos`
        are numbers for all rows or one per row; shorter rows are padded at the left.
    """
    if family not in BUILDERS:
        raise KeyError(f"{family!r}: allowed are {', '.join(BUILDERS)}")
    build: Callable[..., tuple[nn.Module, InputMaker]] = getattr(
        import_module(f"prunekit.models.tiny.builders.{BUILDERS[family]}"), family
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        return build(**sizes)
    finally:
        torch.random.set_rng_state(state)
