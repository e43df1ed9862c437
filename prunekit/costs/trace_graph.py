"""fvcore's analysis of one forward pass, by scope, with nothing lost on the way.

Three things would be lost otherwise. Operators whose result reaches no output (an encoder's unused last layer, scores
where everything is kept) leave the trace as dead code, although they run. Attention calls have no formula in fvcore.
And fvcore knows only scopes that are modules, whereas a policy's work has a scope of its own
(`prunekit.trace.cost_scope`).
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from math import prod
from typing import Any

import torch
from fvcore.nn import jit_handles
from fvcore.nn.jit_analysis import _IGNORED_OPS, _get_scoped_trace_graph
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.overrides import TorchFunctionMode
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS

from prunekit.costs.repeats import Repeats

__all__ = ["HANDLES", "analyse", "attention_macs", "matmul_macs"]

_set_tracing_state: Callable[[Any], None] = getattr(torch._C, "_set_tracing_state")  # noqa: B009, not in torch's stubs
_CALLS = ("prim::PythonOp", "prim::CallFunction")  # of functions that a trace does not look into
Values = Sequence[Any]
Shape = Sequence[int]


def matmul_macs(first: Shape, second: Shape) -> int:
    """A product of (stacks of) matrices or vectors: elements of the result times the length that is summed over."""
    rows, columns = first[-2:-1], second[-1:] if len(second) > 1 else ()
    stacks: Sequence[int] = torch.broadcast_shapes(tuple(first[:-2]), tuple(second[:-2]))
    return prod(stacks) * prod(rows) * first[-1] * prod(columns)


def attention_macs(query: Shape, key: Shape, value: Shape) -> int:
    """Scaled dot-product attention in full, Q K^T and then the average of V.

    The batch and the heads are the query's: under grouped-query attention there are fewer keys and values, each of
    them serving a group.
    """
    *heads, queries, width = query
    return prod(heads) * queries * key[-2] * (width + value[-1])


def _shapes(values: Values) -> list[Any]:
    return [jit_handles.get_shape(value) for value in values]


def grouped_macs(tokens: Shape, experts: Shape) -> int:
    """A product of tokens [tokens, inputs], each with the matrix of its expert, [experts, inputs, outputs]."""
    return prod(tokens) * experts[-1]


HANDLES: dict[str, Callable[[Values, Values], Any]] = {
    "aten::_convolution": jit_handles.conv_flop_jit,
    "aten::_convolution_mode": lambda inputs, outputs: jit_handles.conv_flop_count(
        *_shapes(inputs[:2]), jit_handles.get_shape(outputs[0])
    ),
    "aten::_grouped_mm": lambda inputs, outputs: grouped_macs(*_shapes(inputs[:2])),
    "aten::addmm": jit_handles.addmm_flop_jit,
    "aten::baddbmm": lambda inputs, outputs: matmul_macs(*_shapes(inputs[1:3])),
    "aten::bmm": lambda inputs, outputs: matmul_macs(*_shapes(inputs[:2])),
    "aten::dot": lambda inputs, outputs: matmul_macs(*_shapes(inputs[:2])),
    "aten::einsum": jit_handles.einsum_flop_jit,
    "aten::linear": jit_handles.linear_flop_jit,
    "aten::matmul": lambda inputs, outputs: matmul_macs(*_shapes(inputs[:2])),
    "aten::mm": lambda inputs, outputs: matmul_macs(*_shapes(inputs[:2])),
    "aten::mv": lambda inputs, outputs: matmul_macs(*_shapes(inputs[:2])),
    "aten::scaled_dot_product_attention": lambda inputs, outputs: attention_macs(*_shapes(inputs[:3])),
}
"""Multiply-adds of an operator; fvcore's own formulas for normalisation and the like are left out on purpose."""


def analyse(
    model: nn.Module, tensors: Mapping[str, Tensor], others: Mapping[str, Any], repeats: Repeats | None = None
) -> tuple[Counter[str], Counter[str]]:
    """Trace `model(**tensors, **others)`.

    Args:
        model: left as it was.
        tensors: its arguments that are tensors, by name.
        others: its other arguments.
        repeats: layers of the model that need not be traced again.

    Returns:
        Multiply-adds by innermost scope (a module's name, or that of a `cost_scope`), and the number of calls of each
        operator that has no formula.
    """
    run = _Run(model, tuple(tensors), others)
    names = {module: name for name, module in run.named_modules()}
    try:
        with (
            nullcontext() if repeats is None else repeats.passing_over(),
            warnings.catch_warnings(),
            suppress(_Counted),
        ):
            warnings.filterwarnings("ignore", category=TracerWarning)
            _get_scoped_trace_graph(run, tuple(tensors.values()), names)
    finally:
        _remove_hooks(model)
    counts, uncounted = run.counts, run.uncounted
    if repeats is not None:
        counts, uncounted = repeats.settle(counts, uncounted)
    total: Counter[str] = Counter()
    for (_, operator), number in uncounted.items():
        total[operator] += number
    return counts, total


class _Run(nn.Module):
    """The forward pass, with tensors as arguments, and what its operators cost.

    Operators are counted when the pass is over and its graph complete. Torch would now clean the graph up, which takes
    longer than the pass and removes what is to be counted; so the trace ends here, with `_Counted`.
    """

    def __init__(self, model: nn.Module, names: tuple[str, ...], others: Mapping[str, Any]) -> None:
        super().__init__()
        self.model, self._names, self._others = model, names, others
        self.counts: Counter[str] = Counter()
        self.uncounted: Counter[tuple[str, str]] = Counter()

    def forward(self, *tensors: Tensor) -> Any:
        with _HostNumbers(), _masks_apart():
            self.model(**dict(zip(self._names, tensors, strict=True)), **self._others)
        for node in _nodes(torch._C._get_tracing_state().graph()):
            kind = node.kind()
            handle = HANDLES.get(kind)
            if handle is not None:
                number = handle(list(node.inputs()), list(node.outputs()))
                number = sum(number.values()) if isinstance(number, Counter) else number
                self.counts[_scope(node)] += int(number)
            elif _is_work(kind) and any(map(_is_data, node.outputs())):
                self.uncounted[_scope(node), kind] += 1
        raise _Counted


class _Counted(Exception):
    """The pass is over and has been counted."""


def _is_work(kind: str) -> bool:
    """Whether an operator computes something by fvcore's rule."""
    return kind not in _IGNORED_OPS and (kind in _CALLS or not kind.startswith("prim::"))


def _is_data(value: Any) -> bool:
    """Whether an operator makes a tensor, and not a single integer, as the arithmetic of shapes does."""
    return bool(value.isCompleteTensor() and (value.type().dim() > 0 or value.type().scalarType() != "Long"))


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those inside others too, in any order."""
    blocks = [graph]
    while blocks:
        for node in blocks.pop().nodes():
            yield node
            blocks += node.blocks()


class _HostNumbers(TorchFunctionMode):
    """Keeps shapes Python integers, and Python booleans out of the graph, while a trace is running.

    A trace hands out shapes as tensors, which divmod() and dictionaries of a model or a policy would trip over; and its
    passes know no operator that fills a tensor with a boolean.
    """

    _SHAPES = frozenset((Tensor.shape.__get__, Tensor.size))  # type: ignore[attr-defined]
    _FILLS = ("masked_fill", "masked_fill_", "scatter", "scatter_", "index_fill", "index_fill_", "fill_")

    _CONVOLUTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self._CONVOLUTIONS:
            return _convolution(func, *args, **(kwargs or {}))
        if func in self._SHAPES:
            return _untraced(func)(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in self._FILLS:
            args = tuple(int(value) if isinstance(value, bool) else value for value in args)
        return func(*args, **(kwargs or {}))


@contextmanager
def _masks_apart() -> Iterator[None]:
    """Keep the making of attention masks out of the graph: it has no products, and a trace cannot follow `vmap`."""
    mapping = ALL_MASK_ATTENTION_FUNCTIONS
    before = dict(mapping._local_mapping)
    mapping.update({name: _untraced(make) for name, make in mapping.items()})
    try:
        yield
    finally:
        mapping._local_mapping = before


def _untraced(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        state = torch._C._get_tracing_state()
        _set_tracing_state(None)
        try:
            return function(*args, **kwargs)
        finally:
            _set_tracing_state(state)

    return call


def _convolution(
    func: Any,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """A convolution by the operator that a trace writes down in every mode."""
    if isinstance(padding, str):
        return func(input, weight, bias, stride, padding, dilation, groups)
    axes = weight.ndim - 2
    steps, edges, gaps = ([value] * axes if isinstance(value, int) else value for value in (stride, padding, dilation))
    kernels = (False, False, True, True)  # which kernel may run makes no difference here
    return torch._convolution(input, weight, bias, steps, edges, gaps, False, [0] * axes, groups, *kernels)


def _scope(node: Any) -> str:
    """The innermost module that an operator runs in; a policy's scope, where it lets a module work for it."""
    scopes: list[str] = node.scopeName().split("/")
    return next((scope for scope in scopes if scope.startswith("scorer.")), scopes[-1]).removeprefix("model.")


def _remove_hooks(model: nn.Module) -> None:
    """Take off fvcore's hooks, which stay behind where the forward pass raises."""
    for module in model.modules():
        for hooks in (module._forward_pre_hooks, module._forward_hooks):
            for key in [key for key, hook in hooks.items() if type(hook).__module__.startswith("fvcore.")]:
                del hooks[key]
