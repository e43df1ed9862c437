"""Torch's own counter of multiply-adds, on models of the catalogue: what traces and closed forms are compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from typing import Any

import torch
from catalogue import FAMILIES, Items, Subject
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prunekit import prune
from prunekit.trace import TraceRecord


@cache
def subject(family: str) -> Subject:
    """A family of the catalogue, without the twin that other tests compare with."""
    model, make_inputs = FAMILIES[family].build("sdpa")
    with torch.no_grad():
        model(**make_inputs())  # transformers adds hooks of its own at the first call
    return Subject(FAMILIES[family], "sdpa", model, model, make_inputs)


def torch_counts(model: Any, inputs: Any, items: Items = ()) -> tuple[int, list[TraceRecord]]:
    """What torch's own counter finds, and what the session recorded meanwhile.

    Attention is split into its matrix products, and experts are called one by one.
    """
    counter = FlopCounterMode(display=False)
    with (
        torch.no_grad(),
        prune(model, *items) if items else nullcontext() as session,
        experts_apart(model),
        counter,
        attention_split(),
    ):
        model(**inputs, logits_to_keep=1)
    return counter.get_total_flops(), [] if session is None else list(session.trace)


def attention_split() -> Any:
    """Attention as its two products, which is how torch's counter counts it on every device."""
    return sdpa_kernel(SDPBackend.MATH)


@contextmanager
def experts_apart(model: nn.Module) -> Iterator[None]:
    """Torch's counter knows no grouped products; in the other implementation each expert is a linear layer."""
    configs = {id(m.config): m.config for m in model.modules() if hasattr(m, "config")}.values()
    before = [config._experts_implementation for config in configs]
    for config in configs:
        config._experts_implementation = "eager"
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._experts_implementation = name
