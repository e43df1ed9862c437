"""Integers that the host knows, carried along with tensors of the meta device.

A forward pass reads a few numbers on the host: how many placeholders a row holds, how large an image is. On the meta
device there is nothing to read. Inside `KnownValues` a meta tensor may carry its values in a small tensor of the CPU;
whatever is computed from such tensors alone carries its values, too, and a read on the host is answered from there.
Weights, pixels and all that follows from them have shapes only, and asking for their values is a `CostError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from prunekit.errors import CostError

__all__ = ["KnownValues", "known", "to_meta", "untraced"]

_TRACER = torch._C._dispatch_key_parse("Tracer")
_set_tracing_state: Callable[[Any], None] = getattr(torch._C, "_set_tracing_state")  # noqa: B009, not in torch's stubs
DEPENDS = "The number of tokens that stay depends on the data, which a configuration alone does not tell."
LARGEST = 2**22
"""Elements of a tensor whose values are worth computing; beyond are masks of whole attention maps."""

_FILLED_LATER = ("aten::empty", "aten::new_empty", "aten::empty_like", "aten::empty_strided", "aten::new_empty_strided")


class _Values:
    """The values of a meta tensor, on the CPU, and whether they are still true (a list that its views share)."""

    __slots__ = ("host", "true")

    def __init__(self, host: Tensor, true: list[bool]) -> None:
        self.host, self.true = host, true


def known(tensor: Tensor) -> Tensor | None:
    """The values of a tensor on the CPU, None where there are only shapes."""
    if tensor.device.type != "meta":
        return tensor
    values: _Values | None = getattr(tensor, "_known_values", None)
    return values.host if values is not None and values.true[0] else None


def to_meta(host: Tensor) -> Tensor:
    """A meta tensor that carries the values of `host`."""
    result = torch.empty_strided(host.shape, host.stride(), dtype=host.dtype, device="meta")
    _attach(result, host, [True])
    return result


def _attach(tensor: Tensor, host: Tensor, true: list[bool]) -> None:
    tensor._known_values = _Values(host, true)  # type: ignore[attr-defined]


class _Made(TorchFunctionMode):
    """Lets `torch.tensor(numbers, device="meta")` keep its numbers: it is filled where no mode looks on."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.tensor and torch.device(kwargs.get("device") or "cpu").type == "meta":
            return func(*tree_map_only(Tensor, _certain, list(args)), **{**kwargs, "device": "cpu"}).to("meta")
        return func(*args, **kwargs)


class KnownValues(TorchDispatchMode):
    """While it is on, values of meta tensors that follow from known ones are known.

    It remembers what an operator makes of which shapes, and may be entered again.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._made = ExitStack()
        self._shapes: dict[Any, tuple[bool, list[Any]]] = {}

    def __enter__(self) -> KnownValues:
        self._made.enter_context(_Made())
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self._made.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # What is done here to find shapes and values is no part of the model.
        with untraced(), torch._C.DisableTorchFunction():
            return self._run(func, args, kwargs or {})

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        given = [*_tensors(args), *_tensors(kwargs.values())]
        to = kwargs.get("device")
        if all(tensor.device.type != "meta" for tensor in given) and (to is None or torch.device(to).type != "meta"):
            return func(*args, **kwargs)
        hosts = {id(tensor): known(tensor) for tensor in given}
        complete = all(host is not None for host in hosts.values())
        if _reads(func, given, to):
            return self._read(func, args, kwargs, hosts, complete)
        result = self._shaped(func, args, kwargs)
        self._follow(func, args, kwargs, given, hosts if complete else None, result)
        return result

    def _shaped(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operator on the meta device; it has run once for arguments of the same shapes."""
        if func is torch.ops.aten._grouped_mm.default and args[1].ndim == 3:  # torch knows its shape in bfloat16 only
            return args[0].new_empty(*args[0].shape[:-1], args[1].shape[-1])
        key = _key((func, args, kwargs)) if _makes(func) else None
        if key is None:
            return func(*args, **kwargs)
        found = self._shapes.get(key)
        if found is None:
            result = func(*args, **kwargs)
            several = isinstance(result, (tuple, list))
            made = list(result) if several else [result]
            if all(isinstance(each, Tensor) and each.device.type == "meta" for each in made):
                self._shapes[key] = several, [(each.shape, each.stride(), each.dtype) for each in made]
            return result
        several, sizes = found
        fresh = [torch.empty_strided(shape, steps, dtype=dtype, device="meta") for shape, steps, dtype in sizes]
        return tuple(fresh) if several else fresh[0]

    def _read(self, func: Any, args: Any, kwargs: Any, hosts: dict[int, Tensor | None], complete: bool) -> Any:
        """An operator whose result has values (or a shape) that only the host can tell."""
        if complete:
            result = func(*_hosts(args, hosts), **_hosts(kwargs, hosts))
            if kwargs.get("device") is not None or func is torch.ops.aten._local_scalar_dense.default:
                return result
            return tree_map_only(Tensor, to_meta, result)
        if func is torch.ops.aten.index.Tensor:
            return func(args[0], [each for index in args[1] for each in _numbers(index)])
        raise CostError(DEPENDS)

    def _follow(
        self,
        func: Any,
        args: Any,
        kwargs: Any,
        given: list[Tensor],
        hosts: dict[int, Tensor | None] | None,
        result: Any,
    ) -> None:
        """Compute the values of a result from those of what was given."""
        changes = func._schema.is_mutable
        made = list(_tensors((result,)))
        unknown = (
            hosts is None
            or torch.Tag.nondeterministic_seeded in func.tags
            or func.name().partition(".")[0] in _FILLED_LATER
        )
        large = any(each.numel() > LARGEST and not func.is_view for each in made)
        if large and hosts and not changes and torch.Tag.pointwise in func.tags and all(map(_uniform, hosts.values())):
            corners: dict[int, Tensor | None] = {
                key: host[(slice(1),) * host.ndim] for key, host in hosts.items() if host is not None
            }
            value = func(*_hosts(args, corners), **_hosts(kwargs, corners))
            _attach(result, value.expand(result.shape), [True])
            return
        if unknown or large:
            for place, argument in enumerate(func._schema.arguments if changes else ()):
                if argument.alias_info is not None and argument.alias_info.is_write:
                    target = args[place] if place < len(args) else kwargs.get(argument.name)
                    for tensor in _tensors((target,)):
                        if hasattr(tensor, "_known_values"):
                            tensor._known_values.true[0] = False
            return
        assert hosts is not None
        values = func(*_hosts(args, hosts), **_hosts(kwargs, hosts))
        for tensor, host in zip(made, _tensors((values,)), strict=True):
            if hasattr(tensor, "_known_values") and any(tensor is each for each in given):
                continue  # changed in place, and its values with it
            truths = (
                [each._known_values.true for each in given if hasattr(each, "_known_values")] if func.is_view else []
            )
            _attach(tensor, host, truths[0] if truths else [True])


@contextmanager
def untraced() -> Iterator[None]:
    """Forget a running trace for a while, so that shapes are numbers."""
    state = torch._C._get_tracing_state()
    if state is None:
        yield
        return
    included = torch._C._dispatch_tls_local_include_set().remove(_TRACER)
    excluded = torch._C._dispatch_tls_local_exclude_set().remove(_TRACER)
    with torch._C._ForceDispatchKeyGuard(included, excluded):
        _set_tracing_state(None)
        try:
            yield
        finally:
            _set_tracing_state(state)


def _reads(func: Any, given: list[Tensor], to: Any) -> bool:
    """Whether the meta device cannot run this operator without values."""
    if to is not None and torch.device(to).type != "meta":
        return any(tensor.device.type == "meta" for tensor in given)
    if func is torch.ops.aten.index.Tensor:
        return any(tensor.dtype in (torch.bool, torch.uint8) for tensor in given[1:])
    return torch.Tag.dynamic_output_shape in func.tags or torch.Tag.data_dependent_output in func.tags


def _uniform(host: Tensor | None) -> bool:
    """Whether a tensor is one number that is repeated, such as pixels here."""
    return host is not None and all(
        step == 0 or size == 1 for step, size in zip(host.stride(), host.shape, strict=True)
    )


def _hosts(values: Any, hosts: dict[int, Tensor | None]) -> Any:
    """The same arguments on the CPU."""
    if isinstance(values, Tensor):
        return hosts[id(values)]
    if isinstance(values, (tuple, list)):
        return [_hosts(each, hosts) for each in values]
    if isinstance(values, dict):
        return {name: _hosts(each, hosts) for name, each in values.items()}
    return torch.device("cpu") if isinstance(values, torch.device) else values


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """All tensors among the arguments of an operator, whose lists are not nested deeper."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)


def _makes(func: Any) -> bool:
    """Whether an operator makes new tensors."""
    schema = func._schema
    return not schema.is_mutable and all(each.alias_info is None for each in schema.returns)


def _key(value: Any) -> Any:
    """An argument without its data; numbers with their types, since 1 and True are equal."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype, value.device
    if isinstance(value, (tuple, list)):
        return tuple(map(_key, value))
    if isinstance(value, dict):
        return tuple((name, _key(each)) for name, each in value.items())
    return type(value), value


def _certain(tensor: Tensor) -> Tensor:
    host = known(tensor)
    if host is None:
        raise CostError(DEPENDS)
    return host


def _numbers(index: Tensor | None) -> list[Tensor | None]:
    """Of a boolean index as many numbers as it is true (one tensor an axis), without their values."""
    if index is None or index.dtype not in (torch.bool, torch.uint8):
        return [index]
    numbers = torch.empty(int(_certain(index).count_nonzero()), dtype=torch.long, device="meta")
    return [numbers] * index.ndim
