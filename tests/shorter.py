"""The oracle of decoders that keep a state: a dense model whose layers are handed the columns that are left, alone.

To a recurrent layer a hidden token is still one that came by, so that a mask says nothing. Here each sample runs by
itself, without padding and without a cache, words that were generated behind it; from the layer of a stage on, plain
hooks hand the layers fewer columns. Only the kept indices come from the session's trace.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from catalogue import Family
from oracle import Alive, Inputs
from torch import Tensor, nn

__all__ = ["continued", "left_in", "shorter"]


def left_in(alive: Alive, layer: int, row: int, new: int) -> Tensor:
    """Which columns of a row a layer holds once `new` tokens came behind its prompt; padding is none of them."""
    prompt = alive.decoder(layer)[row][alive.real[row]]
    return torch.cat([prompt, torch.ones(new, dtype=torch.bool)])


def continued(inputs: Inputs, tokens: Tensor) -> Inputs:
    """A sample without padding, and tokens [new] behind it."""
    new = {"input_ids": tokens[None], "attention_mask": torch.ones_like(tokens)[None]}
    kinds = {name: torch.zeros_like(tokens)[None] for name in inputs if name.endswith("token_type_ids")}
    return dict(inputs) | {name: torch.cat([inputs[name], more], 1) for name, more in (new | kinds).items()}


@contextmanager
def shorter(model: nn.Module, family: Family, alive: Alive, row: int, new: int) -> Iterator[None]:
    """Hand each decoder layer only the columns of one sample that are left, `new` tokens behind its prompt."""
    layers: Any = model.get_submodule(family.decoder_layers)
    held = [left_in(alive, layer, row, new) for layer in range(len(layers))]

    def of_layer(layer: int) -> Any:
        columns = held[layer]
        among = columns if layer == 0 else columns[held[layer - 1]]

        def cut(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(map(cut, value))
            if isinstance(value, Tensor):
                for axis in (-1, -2):
                    if value.ndim >= -axis and value.shape[axis] == len(columns):
                        value = value.index_select(axis, columns.nonzero()[:, 0])
            return value

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden, *others = args if args else (kwargs.pop("hidden_states"),)
            return (hidden[:, among], *map(cut, others)), {name: cut(value) for name, value in kwargs.items()}

        return hook

    with ExitStack() as stack:
        for layer, module in enumerate(layers):
            stack.callback(module.register_forward_pre_hook(of_layer(layer), with_kwargs=True).remove)
        yield
