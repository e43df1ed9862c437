"""Sessions that are wrong on purpose, each in a way that a published toolkit was or could be."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import invariants
import pytest
import torch
from torch import Tensor

import prunekit
from prunekit.cache import CACHE

Sabotage = Callable[[Any, Any], AbstractContextManager[None]]
Hook = Callable[[Any, tuple[Any, ...], dict[str, Any]], Any]


def hooked(layers: slice, hook: Hook) -> Sabotage:
    """A session whose hooks are followed by one more on some decoder layers."""

    @contextmanager
    def sabotage(model: Any, session: Any) -> Iterator[None]:
        chosen = model.model.language_model.layers[layers]
        handles = [layer.register_forward_pre_hook(hook, with_kwargs=True) for layer in chosen]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    return sabotage


def _with_mask(kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    mask = kwargs["attention_mask"]
    if mask is None:
        return kwargs
    hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
    return kwargs | {"attention_mask": mask.masked_fill(change(mask), hidden)}


def uncut_mask(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Decode with the mask's first columns instead of those of the kept tokens: padding hides what is no padding."""
    mask = kwargs["attention_mask"]
    if args[0].shape[1] > 1 or mask is None:
        return None
    padding = torch.arange(mask.shape[-1]) < 5  # as wide as the model's own left padding
    return args, _with_mask(kwargs, lambda m: padding.expand(m.shape))


def no_padding(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Forget that rows are padded."""
    tokens = args[0].shape[1]
    keys = tokens if kwargs["attention_mask"] is None else kwargs["attention_mask"].shape[-1]
    allowed = torch.arange(keys) <= torch.arange(keys - tokens, keys)[:, None]
    mask = torch.zeros(1, 1, tokens, keys).masked_fill(~allowed, torch.finfo(torch.float32).min)
    return args, kwargs | {"attention_mask": mask}


def lost_text(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """One text token, just before the last, is hidden from the rows after it."""
    mask = kwargs["attention_mask"]
    if mask is None or mask.shape[-2] == 1:
        return None
    chosen = torch.zeros_like(mask, dtype=torch.bool)
    chosen[..., -1, -2] = True
    return args, _with_mask(kwargs, lambda _: chosen)


def moved_positions(layer: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Every other token is turned by its neighbour's angle."""
    if args[0].shape[1] == 1:
        return None
    tables = []
    for table in kwargs["position_embeddings"]:
        moved = table.clone()
        moved[:, 1::2] = table.roll(1, 1)[:, 1::2]
        tables.append(moved)
    return args, kwargs | {"position_embeddings": tuple(tables)}


def cache_of(layer: int, change: Callable[[Tensor], Tensor]) -> Sabotage:
    """Change the cache of one layer after its prefill."""

    @contextmanager
    def sabotage(model: Any, session: Any) -> Iterator[None]:
        def spoil(module: Any, args: Any, kwargs: Any, output: Any) -> None:
            if args[0].shape[1] > 1:
                held = kwargs[CACHE].layers[layer]
                held.keys, held.values = change(held.keys), change(held.values)

        handle = model.model.language_model.layers[layer].register_forward_hook(spoil, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    return sabotage


def ran_twice(states: Tensor) -> Tensor:
    """What a layer leaves that is called once more to read its attention: prefill stays right, decoding does not."""
    return torch.cat([states, states], dim=-2)


def first_lost(states: Tensor) -> Tensor:
    return states[..., 1:, :]


@contextmanager
def noise(model: Any, session: Any) -> Iterator[None]:
    """Less than any tolerance, but not nothing."""
    handle = model.lm_head.register_forward_hook(lambda m, a, output: output * (1 + 2e-7))
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def wrong_trace(model: Any, session: Any) -> Iterator[None]:
    """The trace names neighbours of the tokens that were kept."""

    class Lies(list):  # type: ignore[type-arg]
        def __iter__(self) -> Iterator[Any]:
            return (replace(record, kept=(record.kept + 1) % 36) for record in super().__iter__())

    session.trace[:] = []
    real, session.trace = session.trace, Lies()
    side = session._text.stages
    side.record, keep = session.trace.append, side.record
    try:
        yield
    finally:
        session.trace, side.record = real, keep


def broken(patch: pytest.MonkeyPatch, sabotage: Sabotage, **kwargs: Any) -> None:
    @contextmanager
    def prune(model: Any, *items: Any) -> Iterator[Any]:
        with prunekit.prune(model, *items, **kwargs) as session, sabotage(model, session):
            yield session

    patch.setattr(invariants, "prune", prune)


@contextmanager
def nothing(model: Any, session: Any) -> Iterator[None]:
    """No sabotage."""
    yield
