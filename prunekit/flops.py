"""Counting what a prefill costs, part by part, on the real pruned forward pass.

The model runs once, with its session attached, under fvcore's tracer; every matrix product, convolution and
attention call is counted where it happens. A policy's own work is told apart from that of the layer it reads.

**Conventions.** One multiply-add (MAC) is the unit, and `flops` is twice their number. Attention is counted in full,
queries times keys, whatever the mask hides. Padding is counted: it is computed. What is no product of matrices
(softmax, normalisation, activations, rotary embeddings, element by element) is not counted but listed in
`Cost.uncounted`; not even listed is what fvcore ignores by its own rule: operators that move, reshape, compare, index
or clamp.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from prunekit._text import TextSide
from prunekit.adapter import ModelAdapter, adapter_for
from prunekit.closed_form import closed_form
from prunekit.costs.known import KnownValues, to_meta
from prunekit.costs.parts import Cost
from prunekit.costs.repeats import Repeats
from prunekit.costs.trace_graph import analyse
from prunekit.errors import UnsupportedModelError
from prunekit.plan import Method, Stage
from prunekit.session import prune

__all__ = ["Cost", "closed_form", "count"]

Stages = Stage | Method | Sequence[Stage | Method]


def count(
    model: nn.Module,
    inputs: Mapping[str, Any],
    stages_or_method: Stages | None = None,
    *,
    logits_to_keep: int = 1,
) -> Cost:
    """Count the multiply-adds of one prefill.

    Args:
        model: a supported model; it is left as it was.
        inputs: what the processor makes, `input_ids`, `attention_mask`, `pixel_values`. Costs are those of the batch.
        stages_or_method: what to prune with; None counts the model as it is, in a session if it is in one.
        logits_to_keep: positions that go through the output head; generation needs 1, 0 stands for all.

    Raises:
        UnsupportedModelError: no supported family, or attention by a kernel that a trace cannot look into.
    """
    adapter = adapter_for(model)
    given = [stages_or_method] if isinstance(stages_or_method, (Stage, Method)) else list(stages_or_method or ())
    with torch.no_grad(), KnownValues() if _without_weights(model) else nullcontext():
        return trace(adapter, on_device(model, inputs), given, logits_to_keep=logits_to_keep)


def trace(
    adapter: ModelAdapter,
    inputs: Mapping[str, Any],
    items: Sequence[Stage | Method],
    repeats: Repeats | None = None,
    **others: Any,
) -> Cost:
    """Count one call of a model on inputs that are where it is; see `count`."""
    _check_attention(adapter)
    model = adapter.model
    tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
    others = {name: value for name, value in inputs.items() if name not in tensors} | others
    others |= {"use_cache": True, "return_dict": True}
    visual: list[int] = []
    with _evaluating(model), prune(model, *items) if items else nullcontext(), _watch(adapter, inputs, visual):
        counts, uncounted = analyse(model, tensors, others, repeats)
    return _cost(adapter, counts, tuple(visual), uncounted)


def on_device(model: nn.Module, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs for a model on the meta device: numbers keep their values, pixels their shape. Others are left alone."""
    if not _without_weights(model):
        return dict(inputs)
    moved: dict[str, Any] = {}
    for name, value in inputs.items():
        pixels = isinstance(value, Tensor) and value.is_floating_point()
        moved[name] = plain(value) if pixels else to_meta(value) if isinstance(value, Tensor) else value
    return moved


def plain(pixels: Tensor) -> Tensor:
    """A tensor of the meta device that is filled with ones, whatever was given: nothing of it is padding."""
    return to_meta(torch.ones((), dtype=pixels.dtype).expand(pixels.shape))


def _without_weights(model: nn.Module) -> bool:
    return next(model.parameters()).device.type == "meta"


def _cost(adapter: ModelAdapter, counts: Counter[str], visual: tuple[int, ...], uncounted: Counter[str]) -> Cost:
    """Sort the counts by scope into parts."""
    names = {module: name for name, module in adapter.model.named_modules()}
    parts = {
        names[module]: part
        for module, part in (
            (adapter.vision_tower, "vision"),
            (adapter.projector, "projector"),
            (adapter.text_model, "prefill"),
            (adapter.lm_head, "lm_head"),
        )
        if module is not None
    }
    layers = {names[layer]: index for index, layer in enumerate(adapter.decoder_layers)}
    macs = dict.fromkeys(("vision", "projector", "scorer", "prefill", "lm_head"), 0)
    per_layer, scorers = [0] * adapter.depth, {}
    for scope, number in counts.items():
        if scope.partition(".")[0] == "scorer":
            macs["scorer"] += number
            scorers[scope.partition(".")[2]] = number
            continue
        macs[next((part for name, part in parts.items() if _inside(scope, name)), "projector")] += number
        for name, index in layers.items():
            per_layer[index] += number * _inside(scope, name)
    return Cost(macs, tuple(per_layer), dict(sorted(scorers.items())), visual, dict(sorted(uncounted.items())))


def _inside(scope: str, module: str) -> bool:
    return scope == module or scope.startswith(module + ".")


def _check_attention(adapter: ModelAdapter) -> None:
    """Refuse attention that would be missing from the count."""
    for part in (adapter.vision_tower, adapter.text_model):
        if part is None:
            continue
        name = part.config._attn_implementation  # type: ignore[union-attr]
        if name not in ("eager", "sdpa"):
            raise UnsupportedModelError(
                f"{type(part).__name__} uses the attention {name!r}, a kernel that a trace cannot look into; its cost"
                " would be missing. Count under 'sdpa' or 'eager', which are counted alike:"
                " model.set_attn_implementation('sdpa')."
            )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and every module's own mode again."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _watch(adapter: ModelAdapter, inputs: Mapping[str, Any], visual: list[int]) -> Iterator[None]:
    """Note the visual tokens that enter each decoder layer; to be opened after the session."""
    owners = [getattr(hook, "__self__", None) for hook in adapter.text_model._forward_pre_hooks.values()]
    side = next((owner for owner in owners if isinstance(owner, TextSide)), None)
    mask = adapter.visual_mask(inputs.get("input_ids"), inputs.get("inputs_embeds"))
    present = int((mask & (inputs["attention_mask"] != 0)).sum()) if "attention_mask" in inputs else int(mask.sum())

    def note(module: nn.Module, args: Any) -> None:
        call = None if side is None else side.call
        visual.append(present if call is None or call.sequence is None else sum(call.sequence.visual))

    with ExitStack() as stack:
        for layer in adapter.decoder_layers:
            stack.callback(layer.register_forward_pre_hook(note).remove)
        yield
