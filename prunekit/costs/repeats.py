"""Layers that were traced once are not traced again.

A large model has dozens of layers that do the same on inputs of the same shape. On the meta device, where nothing is
computed, a layer that another one of the same build has stood for already is passed over: its hooks run, its cache is
filled, and its operators are those of the layer that was traced.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from transformers import DynamicCache

from prunekit._placeholders import wrap
from prunekit.adapter import ModelAdapter
from prunekit.cache import given_cache
from prunekit.costs.known import known, untraced
from prunekit.trace import cost_scope

__all__ = ["RecordingCache", "Repeats"]

Found = tuple[Counter[str], Counter[tuple[str, str]]]
"""Multiply-adds by scope, and calls of operators without a formula by scope and name."""


class RecordingCache(DynamicCache):
    """A cache that notes the shapes of the keys and values that a layer brings."""

    def __init__(self, config: Any) -> None:
        super().__init__(config=config)
        self.brought: dict[int, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> Any:
        self.brought[layer_idx] = tuple(key_states.shape), tuple(value_states.shape)
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)


@dataclass
class _Layer:
    """What a layer does on inputs of some shapes."""

    macs: int = 0
    uncounted: Counter[str] = field(default_factory=Counter)
    brought: tuple[tuple[int, ...], tuple[int, ...]] | None = None
    blanks: int | None = None  # entries of None after the states in a tuple; None: the states alone


class Repeats:
    """Knows the layers of one model on the meta device, from run to run."""

    def __init__(self, adapter: ModelAdapter) -> None:
        names = {module: name for name, module in adapter.model.named_modules()}
        self._known: dict[Any, _Layer] = {}
        decoder = enumerate(adapter.decoder_layers)
        self._layers: list[tuple[nn.Module, str, int | None]] = [(each, names[each], index) for index, each in decoder]
        self._layers += [(layer, names[layer], None) for layer in adapter.vision_layers or ()]
        self._builds = {layer: _build(layer) for layer, _, _ in self._layers}
        self._first: dict[str, _Layer] = {}  # layers that are traced in this run
        self._again: dict[str, _Layer] = {}  # layers that are passed over in this run

    @contextmanager
    def passing_over(self) -> Iterator[None]:
        """Inside, layers that are known are passed over."""
        self._first, self._again = {}, {}
        with ExitStack() as hooks:
            for layer, name, index in self._layers:
                wrap(layer, "forward", self._wrapped(layer, name, index), hooks)
            yield

    def settle(self, counts: Counter[str], uncounted: Counter[tuple[str, str]]) -> Found:
        """Learn what was traced, and add what was passed over."""
        for name, layer in self._first.items():
            layer.macs = sum(number for scope, number in counts.items() if scope.startswith(name + "."))
            for (scope, operator), number in uncounted.items():
                if scope.startswith(name + "."):
                    layer.uncounted[operator] += number
        counts, uncounted = Counter(counts), Counter(uncounted)
        for name, layer in self._again.items():
            scope = f"{name}.forward"
            counts[scope] = layer.macs
            uncounted.update({(scope, operator): number for operator, number in layer.uncounted.items()})
        return counts, uncounted

    def _wrapped(self, layer: nn.Module, name: str, index: int | None) -> Callable[..., Any]:
        def make(method: Callable[..., Any]) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                with cost_scope(f"model.{name}.forward"):
                    if _read(layer):
                        return method(*args, **kwargs)
                    cache = given_cache(kwargs) if index is not None else None
                    with untraced():
                        key = self._builds[layer], _shapes(args), _shapes(kwargs), _held(cache, index)
                    if key in self._known:
                        self._again[name] = self._known[key]
                        return _output(self._known[key], args, kwargs, cache, index)
                    output = method(*args, **kwargs)
                    found = _template(output, args, kwargs)
                    if found is not None:
                        if cache is not None:
                            found.brought = cache.brought.get(index)
                        self._known[key] = self._first[name] = found
                    return output

            return forward

        return make


def _states(args: Any, kwargs: Any) -> Any:
    return args[0] if args else kwargs["hidden_states"]


def _template(output: Any, args: Any, kwargs: Any) -> _Layer | None:
    """What is needed to make such an output; None where it is more than states as they came in."""
    states, *rest = output if isinstance(output, tuple) else (output,)
    given = _states(args, kwargs)
    if not isinstance(states, Tensor) or (states.shape, states.dtype) != (given.shape, given.dtype) or any(rest):
        return None
    return _Layer(blanks=len(rest) if isinstance(output, tuple) else None)


def _output(layer: _Layer, args: Any, kwargs: Any, cache: Any, index: int | None) -> Any:
    states = _states(args, kwargs)
    if layer.brought is not None:
        with untraced():
            cache.update(*(states.new_empty(shape) for shape in layer.brought), index)
    fresh = states.view(states.shape)
    return fresh if layer.blanks is None else (fresh, *[None] * layer.blanks)


def _read(layer: nn.Module) -> bool:
    """Whether a policy looks inside this layer."""
    return any(
        str(getattr(hook, "__module__", "")).startswith("prunekit.")
        for module in layer.modules()
        if module is not layer
        for hooks in (module._forward_pre_hooks, module._forward_hooks)
        for hook in hooks.values()
    )


def _build(layer: nn.Module) -> Any:
    """What two layers have in common if they do the same on the same shapes."""
    plain = (bool, int, float, str, tuple, type(None))
    return tuple(
        (
            type(module),
            tuple((name, tuple(parameter.shape)) for name, parameter in module.named_parameters(recurse=False)),
            tuple(
                (name, value)
                for name, value in vars(module).items()
                if isinstance(value, plain) and name not in ("layer_idx", "layer_id", "training")
            ),
        )
        for module in layer.modules()
    )


def _shapes(value: Any) -> Any:
    """What an argument says to a layer, without the data."""
    if isinstance(value, Tensor):
        host = known(value) if value.ndim == 1 and not value.is_floating_point() else None
        return tuple(value.shape), value.dtype, None if host is None else tuple(host.tolist())
    if isinstance(value, (tuple, list)):
        return tuple(map(_shapes, value))
    if isinstance(value, dict):
        return tuple((name, _shapes(each)) for name, each in value.items())
    return value if isinstance(value, (bool, int, float, str, type(None))) else type(value)


def _held(cache: Any, index: int | None) -> Any:
    """What a layer's cache holds."""
    if cache is None or index is None or index >= len(cache.layers):
        return None
    layer = cache.layers[index]
    return type(layer), layer.is_sliding, _shapes(getattr(layer, "keys", None)), layer.get_seq_length()
