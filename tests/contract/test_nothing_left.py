"""6. After a session, however it ended, nothing differs from before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from catalogue import ATTENTION, BUDGETS, FAMILIES, POLICIES, subject
from invariants import LAYOUTS, generate
from snapshots import differences, snapshot
from torch import Tensor

from prunekit import Keep, PruningPolicy, Selection, Stage, VisualTokens, prune
from prunekit.policies import CrossAttention, SelfAttention


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_after_a_normal_end(family: str, attention: str, policy: str) -> None:
    model = subject(family, attention)
    inputs = model.make_inputs(**LAYOUTS["ragged"])
    before = snapshot(model.model)
    with prune(model.model, *POLICIES[policy].build(BUDGETS["ratio"])):
        assert differences(before, snapshot(model.model)), "no power: the session leaves no trace while it runs"
        model.model(**inputs)
        model.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert differences(before, snapshot(model.model)) == []


class Boom(RuntimeError):
    pass


@dataclass(frozen=True)
class Faulty(PruningPolicy):
    """Raises when asked."""

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        raise Boom("policy")


def _boom(*_: Any) -> None:
    raise Boom("layer")


FAILING = ("model.vision_tower.encoder.layers.1.self_attn", "model.multi_modal_projector",
           "model.language_model.layers.1.self_attn", "model.language_model.layers.3.mlp", "lm_head")  # fmt: skip
STAGES = (Stage("vision.1", SelfAttention(), Keep(ratio=0.75)), Stage("decoder.2", CrossAttention(), Keep(ratio=0.5)))


@pytest.mark.parametrize("where", FAILING)
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_after_a_failing_layer(attention: str, where: str) -> None:
    model = subject("llava", attention).model
    inputs = subject("llava", attention).make_inputs()
    before = snapshot(model)
    plain = model(**inputs).logits

    def fail() -> None:
        with prune(model, *STAGES):
            handle = model.get_submodule(where).register_forward_pre_hook(_boom)
            try:
                model(**inputs)
            finally:
                handle.remove()

    with pytest.raises(Boom):
        fail()
    assert differences(before, snapshot(model)) == []
    assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("site", ["vision.0", "input", "decoder.2"])
@pytest.mark.parametrize("call", ["forward", "generate"])
@torch.no_grad()
def test_after_a_failing_policy(site: str, call: str) -> None:
    model = subject("llava", "sdpa")
    before = snapshot(model.model)
    with pytest.raises(Boom, match="policy"), prune(model.model, Stage(site, Faulty(), Keep(ratio=0.5))):
        model.model(**model.make_inputs()) if call == "forward" else generate(model.model, model.make_inputs())
    assert [key for key in differences(before, snapshot(model.model)) if key != "random"] == []


@torch.no_grad()
def test_a_failed_call_does_not_spoil_the_next() -> None:
    """Inside one session: an exception in the middle of a prefill, then the same prefill again."""
    model = subject("llava", "sdpa")
    inputs = model.make_inputs()
    with prune(model.model, *STAGES) as session:
        expected = model.model(**inputs).logits
        for where in FAILING:
            handle = model.model.get_submodule(where).register_forward_pre_hook(_boom)
            with pytest.raises(Boom):
                model.model(**inputs)
            handle.remove()
        assert torch.equal(model.model(**inputs).logits, expected)
    kept: list[Tensor] = [record.kept for record in session.trace if record.site == "decoder.2"]
    assert torch.equal(kept[0], kept[-1])


@torch.no_grad()
def test_before_the_first_call() -> None:
    """A session on a model that never ran leaves only what transformers itself installs."""
    family = FAMILIES["llava"]
    (model, make_inputs), (plain, _) = family.build("sdpa"), family.build("sdpa")
    with prune(model, *STAGES):
        model(**make_inputs())
    plain(**make_inputs())
    for (name, ours), (_, theirs) in zip(model.named_modules(), plain.named_modules(), strict=True):
        assert sorted(vars(ours)) == sorted(vars(theirs)), name
        for key in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs"):
            assert len(getattr(ours, key)) == len(getattr(theirs, key)), f"{name} {key}"


def test_users_own_hooks_stay() -> None:
    model, seen = subject("llava", "sdpa").model, []
    handle = model.lm_head.register_forward_hook(lambda *_: seen.append(1))
    with prune(model, *STAGES), torch.no_grad():
        model(**subject("llava", "sdpa").make_inputs())
    assert list(model.lm_head._forward_hooks) == [handle.id]
    handle.remove()
    assert seen == [1]
