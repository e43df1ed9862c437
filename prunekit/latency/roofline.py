"""A roofline: the least time that a part can take on this machine, from its operations and its bytes.

A part cannot be faster than `max(operations / peak, bytes / bandwidth)`. Peak and bandwidth are measured in the same
run, by a product of square matrices and by a copy. Bytes are those that must be moved even if a layer kept everything
else on the chip:

- weights of the part, once for a batch (of a mixture of experts all of them);
- states that enter and leave each layer, as the real run hands them over;
- the KV cache: written by the prefill, read by every decode step.

What is inside a layer (attention maps, the MLP's middle) is not counted, so that the bound stays one. Nor can it hold
where weights fit into a cache of the processor, which is faster than the memory that the copy measures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from prunekit import flops
from prunekit.cache import CACHE
from prunekit.costs.closed_form_text import Decoder
from prunekit.errors import UnsupportedModelError
from prunekit.latency.timer import Timer
from prunekit.latency.ways import Way

__all__ = ["Bound", "Peaks", "Work", "bounds", "peaks", "work"]


@dataclass(frozen=True)
class Peaks:
    """What the device can do, as measured.

    Attributes:
        flops: operations per second in a product of two square matrices, a multiply-add being two.
        bandwidth: bytes per second in a copy, those read and those written.
    """

    flops: float
    bandwidth: float


@dataclass(frozen=True)
class Work:
    """What a part does.

    Attributes:
        flops: operations; None where they are not known.
        bytes: that it must move.
    """

    flops: int | None
    bytes: int


@dataclass(frozen=True)
class Bound:
    """The least time of a part.

    Attributes:
        flops: operations; None where they are not known, and the bound is that of the bytes alone.
        bytes: that it must move.
        seconds: the bound.
        limit: `compute` or `memory`; of a prefill that of its longest part.
    """

    flops: int | None
    bytes: int
    seconds: float
    limit: str


def bounds(found: Mapping[str, Work], peak: Peaks) -> dict[str, Bound]:
    """The bound of every part, and of `prefill`: the sum over its parts, which run one after the other."""
    each = {part: _bound(work, peak) for part, work in found.items()}
    inside = [bound for part, bound in each.items() if part != "decode"]
    flops = sum(bound.flops or 0 for bound in inside)
    longest = max(inside, key=lambda bound: bound.seconds)
    whole = Bound(flops, sum(b.bytes for b in inside), sum(b.seconds for b in inside), longest.limit)
    return each | {"prefill": whole}


def _bound(each: Work, peak: Peaks) -> Bound:
    compute, memory = (each.flops or 0) / peak.flops, each.bytes / peak.bandwidth
    return Bound(each.flops, each.bytes, max(compute, memory), "compute" if compute > memory else "memory")


def peaks(device: torch.device, dtype: torch.dtype, timer: Timer) -> Peaks:
    """Measure a device, in about a second: the best of several runs."""
    side, numbers = (8192, 2**28) if device.type == "cuda" else (1024, 2**25)
    left, right, product = (torch.ones(side, side, device=device, dtype=dtype) for _ in range(3))
    multiply = _best(lambda: torch.mm(left, right, out=product), timer)
    source = torch.ones(numbers, device=device)
    target = torch.empty_like(source)
    copy = _best(lambda: target.copy_(source), timer)
    return Peaks(2 * side**3 / multiply, 2 * source.nbytes / copy)


def _best(action: Callable[[], Any], timer: Timer, budget: float = 0.5) -> float:
    action()
    taken: list[float] = []
    while len(taken) < 3 or (sum(taken) < budget and len(taken) < 100):
        timer.wait()
        start = timer.mark()
        action()
        end = timer.mark()
        timer.wait()
        taken.append(timer.seconds(start, end))
    return min(taken)


@torch.inference_mode()
def work(way: Way, inputs: Mapping[str, Tensor], cost: flops.Cost, batch: int, tokens: int) -> dict[str, Work]:
    """What `vision`, `language`, `rest` (projector and output head) and `decode` do; a policy's work is where it runs.

    Args:
        way: dense or pruned.
        inputs: of the batch, whose samples are alike.
        cost: of one sample.
        batch: samples.
        tokens: decoded tokens; `decode` is the mean step.
    """
    adapter = way.adapter
    inside = sum(number for scope, number in cost.scorers.items() if scope.startswith("vision."))
    between = sum(number for scope, number in cost.scorers.items() if scope == "connector")
    macs = {"vision": cost.macs["vision"] + inside}
    macs["language"] = cost.macs["prefill"] + cost.macs["scorer"] - inside - between
    macs["rest"] = cost.macs["projector"] + cost.macs["lm_head"] + between
    states = dict.fromkeys(("vision", "language", "rest"), 0)
    with way.ready(), _weighing(way, states):
        cache = way.prefill(inputs)[CACHE]
    held = [_numbers(layer.keys, layer.values) for layer in cache.layers]
    states["language"] += sum(held)
    weights = {part: _weights(modules) for part, modules in _modules(way).items()}
    found = {part: Work(2 * batch * macs[part], weights[part] + states[part]) for part in macs}
    head = _weights([adapter.lm_head])
    step = weights["language"] + head + sum(held) + _growth(cache, tokens)
    if adapter.vision_tower is None:
        del found["vision"]  # its operations are among those of the rest
    return found | {"decode": Work(_decoded(way, cache, batch, tokens), step)}


def _modules(way: Way) -> dict[str, list[nn.Module | None]]:
    adapter = way.adapter
    language: list[nn.Module | None] = [*adapter.decoder_layers, adapter.norm]
    return {"vision": [adapter.vision_tower], "language": language, "rest": [adapter.projector, adapter.lm_head]}


def _weights(modules: Sequence[nn.Module | None]) -> int:
    return sum(weight.nbytes for module in modules if module is not None for weight in module.parameters())


def _numbers(*tensors: Tensor) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _growth(cache: Any, tokens: int) -> int:
    """Bytes by which the tokens decoded before lengthen the cache that a mean step reads, and its own, written."""
    token = sum(_numbers(layer.keys, layer.values) // layer.keys.shape[-2] for layer in cache.layers)
    return int(token * (tokens + 1) // 2)


def _decoded(way: Way, cache: Any, batch: int, tokens: int) -> int | None:
    """Operations of a mean decode step, where the closed form knows the language model."""
    try:
        decoder = Decoder.of(way.adapter.text_config)
    except UnsupportedModelError:
        return None
    lengths = [layer.keys.shape[-2] for layer in cache.layers]
    pruned = min((stage.where.index * (stage.where.part == 2) for stage in way.stages), default=None)
    layers = sum(decoder.decode(lengths, tokens, pruned=pruned))
    return int(2 * batch * (layers + decoder.head(tokens)) // tokens)


@contextmanager
def _weighing(way: Way, states: dict[str, int]) -> Iterator[None]:
    """Add the bytes of the states that enter and leave each layer, between the session's hooks and the layer."""
    adapter = way.adapter
    parts = {"vision": list(adapter.vision_layers or ()), "language": list(adapter.decoder_layers)}
    parts["rest"] = [module for module in (adapter.projector, adapter.lm_head) if module is not None]

    def weigh(part: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            entered = args[0] if args else kwargs.get("hidden_states")
            left = output[0] if isinstance(output, tuple) else output
            states[part] += _numbers(*(each for each in (entered, left) if isinstance(each, Tensor)))

        return note

    with ExitStack() as stack:
        for part, modules in parts.items():
            for module in modules:
                handle = module.register_forward_hook(weigh(part), prepend=True, with_kwargs=True)
                stack.callback(handle.remove)
        yield
