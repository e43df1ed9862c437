"""Half precision, quantised and compiled models."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from catalogue import FAMILIES, PLANS, subject
from invariants import LAYOUTS, assert_near, generate
from oracle import Alive, masked
from torch import Tensor, nn

from prunekit import prune
from prunekit.errors import UnsupportedModelError

PYRAMID = PLANS["pyramid"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_half_precision(family: str, dtype: torch.dtype) -> None:
    """The oracle holds as far as half precision can tell, and generation stays finite."""
    parts = subject(family, "sdpa")
    model, dense = copy.deepcopy(parts.model).to(dtype), copy.deepcopy(parts.dense).to(dtype)
    inputs: Any = parts.make_inputs(**LAYOUTS["padded"], seed=1)
    inputs = {name: value.to(dtype) if value.is_floating_point() else value for name, value in inputs.items()}
    with prune(model, *PYRAMID) as session:
        logits = model(**inputs).logits
        out = generate(model, inputs, 3)
    assert all(each.isfinite().all() for each in out.logits)
    with masked(dense, Alive(session.trace[:4], inputs, parts.family), parts.family):
        expected = dense(**inputs).logits
    gap = (logits - expected)[:, -1].float().abs().mean() / expected[:, -1].float().abs().mean()
    assert gap < (0.2 if dtype is torch.bfloat16 else 0.05), f"differs by {gap:.1%}"


class Int8(nn.Module):
    """A linear layer with 8-bit weights and a scale a row, as quantised models have in place of `nn.Linear`."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("weight", (linear.weight / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def _quantise(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Int8(child))
        else:
            _quantise(child)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@torch.no_grad()
def test_quantised_weights_are_left_alone(family: str) -> None:
    parts = subject(family, "sdpa")
    model, dense = copy.deepcopy(parts.model), copy.deepcopy(parts.dense)
    for each in (model, dense):
        _quantise(each.model)
    inputs = parts.make_inputs(**LAYOUTS["ragged"], seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with prune(model, *PLANS["star"]) as session:
        logits = model(**inputs).logits
    with masked(dense, Alive(session.trace, inputs, parts.family), parts.family):
        expected = dense(**inputs).logits
    assert_near(logits[:, -1], expected[:, -1], "quantised", 1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("how", ["torch.compile", "model.compile", "a compiled part"])
def test_compiled_models_are_refused(how: str) -> None:
    model = copy.deepcopy(subject("llava", "sdpa").model)
    if how == "torch.compile":
        model = torch.compile(model, backend="eager")
    else:
        (model if how == "model.compile" else model.model.language_model).compile(backend="eager")
    with pytest.raises(UnsupportedModelError, match=r"(Llava|OptimizedModule).*compiled.*torch\.compile"):
        prune(model, *PYRAMID)
