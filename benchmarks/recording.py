"""What the decoder layers of a dense run are handed, and the same cut to the columns that a pruned run keeps.

Recorded by plain hooks on the model as it is, once for a prompt and some tokens after it. From the recording
`variants.py` builds runs on a shortened sequence whose masks, positions and rotary tables are the model's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.cache import CACHE, NAMES

__all__ = ["Arguments", "Reached", "Recording", "states", "stopping"]

Call = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Arguments:
    """What a layer is handed besides the states and the KV cache."""

    rest: tuple[Any, ...]
    named: dict[str, Any]

    def run(self, layer: nn.Module, hidden: Tensor, cache: Any) -> Tensor:
        """Call a layer with them; returns the states."""
        return states(layer(hidden, *self.rest, **self.named, **{CACHE: cache}))

    def cut(self, change: Callable[[str, Any], Any]) -> Arguments:
        """The same after `change(name, value)` of every value."""
        return Arguments(
            tuple(change("", value) for value in self.rest),
            {name: change(name, value) for name, value in self.named.items()},
        )


@dataclass
class Recording:
    """One dense run.

    Attributes:
        length: columns of the prompt.
        prompt: what each layer is handed with the prompt.
        steps: the same with each token after it, by step and layer.
        added: what the model adds to the states behind each layer (DeepStack), None where it hands them on as they are.
        norm: the module that the states of the last layer go through; None where there is none.
    """

    length: int
    prompt: list[Arguments] = field(default_factory=list)
    steps: list[list[Arguments]] = field(default_factory=list)
    added: list[Tensor | None] = field(default_factory=list)
    norm: nn.Module | None = None

    @classmethod
    def of(cls, text_model: nn.Module, layers: nn.ModuleList, length: int, runs: list[Callable[[], Any]]) -> Recording:
        """Record the first of `runs` as the prompt, and the others as tokens after it."""
        first, *others = runs
        calls, outputs, norms = watched(text_model, layers, first)
        found = cls(length, [arguments(call) for call in calls], norm=next(iter(norms), None))
        for output, following in zip(outputs, [*calls[1:], None], strict=True):
            changed = following is not None and following[0][0] is not output
            found.added.append(following[0][0] - output if changed and following is not None else None)
        for run in others:
            found.steps.append([arguments(call) for call in watched(text_model, layers, run)[0]])
        return found

    def cut_prompt(self, index: int, columns: Tensor, once: dict[Any, Any]) -> Arguments:
        """What layer `index` is handed with the prompt, for some of its columns; `once` shares cuts between layers."""

        def select(name: str, value: Any) -> Any:
            if isinstance(value, Tensor):
                return shared(once, value, columns, lambda full: cut(full, self.length, columns))
            if isinstance(value, (tuple, list)) and not hasattr(value, "_fields"):
                return type(value)(select(name, item) for item in value)
            return {key: select(name, item) for key, item in value.items()} if type(value) is dict else value

        return self.prompt[index].cut(select)

    def cut_step(self, step: int, index: int, columns: Tensor, once: dict[Any, Any]) -> Arguments:
        """What layer `index` is handed with a token after the prompt, if its cache holds some columns of the prompt."""
        seen = torch.arange(self.length, self.length + step + 1, device=columns.device)

        def select(name: str, value: Any) -> Any:
            if name != "attention_mask" or value is None:
                return value
            return shared(once, value, columns, lambda full: visible(full, torch.cat([columns, seen])))

        return self.steps[step][index].cut(select)


def states(output: Any) -> Tensor:
    """The states among what a layer returns."""
    return output[0] if isinstance(output, tuple) else output  # type: ignore[no-any-return]


def arguments(call: Call) -> Arguments:
    """What a layer was handed besides states and cache."""
    args, kwargs = call
    return Arguments(args[1:], {name: value for name, value in kwargs.items() if name not in NAMES})


def watched(
    text_model: nn.Module, layers: nn.ModuleList, run: Callable[[], Any]
) -> tuple[list[Call], list[Tensor], list[nn.Module]]:
    """What the layers are handed and return, and the modules that the states of the last one go to."""
    calls: list[Call] = []
    outputs: list[Tensor] = []
    after: list[nn.Module] = []

    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        kwargs = dict(kwargs)
        calls.append((args, kwargs) if args else ((kwargs.pop("hidden_states"),), kwargs))

    def behind(module: nn.Module, args: Any) -> None:
        if len(outputs) == len(layers) and args and args[0] is outputs[-1]:
            after.append(module)

    with ExitStack() as stack:
        for layer in layers:
            stack.callback(layer.register_forward_pre_hook(before, with_kwargs=True).remove)
            stack.callback(layer.register_forward_hook(lambda m, a, output: outputs.append(states(output))).remove)
        for child in text_model.children():
            stack.callback(child.register_forward_pre_hook(behind).remove)
        run()
    return calls, outputs, after


def shared(once: dict[Any, Any], value: Tensor, columns: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`change(value)`, made once for all layers that are handed one object and keep the same columns."""
    key = id(value), id(columns)
    if key not in once:
        once[key] = change(value), value, columns  # both kept alive, so that their ids stay theirs
    return once[key][0]  # type: ignore[no-any-return]


def cut(value: Tensor, length: int, columns: Tensor) -> Tensor:
    """Columns of a tensor along every axis that has one entry a column: one of a table, two of a mask."""
    for axis, size in enumerate(value.shape):
        value = value.index_select(axis, columns) if size == length else value
    return value


def visible(mask: Tensor, columns: Tensor) -> Tensor:
    """Key columns of a mask that may have forgotten the first ones, as those of sliding windows do."""
    places = columns - (int(columns[-1]) + 1 - mask.shape[-1])
    taken = mask.index_select(-1, places.clamp(min=0))
    return taken.masked_fill(places < 0, 0 if mask.dtype == torch.bool else torch.finfo(mask.dtype).min)


class Reached(Exception):
    """The model has come to its first decoder layer."""

    def __init__(self, hidden: Tensor) -> None:
        super().__init__()
        self.hidden = hidden


@contextmanager
def stopping(layer: nn.Module) -> Iterator[Callable[[Callable[[], Any]], Tensor]]:
    """Give a function that runs a model up to this layer, and returns the states that the layer would be handed."""
    armed = False

    def stop(module: nn.Module, args: Any, kwargs: Any) -> None:
        if armed:
            raise Reached(args[0] if args else kwargs["hidden_states"])

    def front(run: Callable[[], Any]) -> Tensor:
        nonlocal armed
        armed = True
        try:
            run()
        except Reached as reached:
            return reached.hidden
        finally:
            armed = False
        raise RuntimeError(f"{type(layer).__name__} was not reached")

    handle = layer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        yield front
    finally:
        handle.remove()
