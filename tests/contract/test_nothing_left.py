"""6. After a session, however it ended, nothing differs from before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from catalogue import ATTENTION, BUDGETS, FAMILIES, POLICIES, Items, Subject, subject
from invariants import LAYOUTS, generate
from snapshots import OWN, differences, snapshot
from torch import Tensor
from transformers import DynamicCache, StoppingCriteria, StoppingCriteriaList

from prunekit import Keep, PruningPolicy, ScoringPolicy, Selection, Stage, VisualTokens, prune
from prunekit.cache import CACHE
from prunekit.errors import UnsupportedCacheError
from prunekit.policies import STAR, CrossAttention, SelfAttention


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_after_a_normal_end(attention: str, policy: str) -> None:
    model = subject("llava", attention)
    inputs = model.make_inputs(**LAYOUTS["ragged"])
    before = snapshot(model.model)
    with prune(model.model, *POLICIES[policy].build(BUDGETS["ratio"])):
        assert differences(before, snapshot(model.model)), "no power: the session leaves no trace while it runs"
        model.model(**inputs)
        model.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert differences(before, snapshot(model.model)) == []


class Boom(RuntimeError):
    pass


def _boom(*_: Any) -> None:
    raise Boom("layer")


HALF = Keep(ratio=0.5)


def taps(model: Subject) -> Items:
    """Stages that hook as much as the family offers: its encoder and its decoder, and attention in both."""
    return (STAR(keep=0.25),) if model.family.encoder_layers else (Stage("decoder.2", CrossAttention(), HALF),)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_of_every_family(family: str) -> None:
    """After a forward pass and `generate`, and after an exception in the middle of each."""
    model = subject(family, "sdpa")
    inputs = model.make_inputs(batch=2, text=(4, 6))
    before = snapshot(model.model)

    def fail(call: str) -> None:
        with prune(model.model, *taps(model)):
            handle = model.model.get_submodule(model.family.decoder_layers)[3].register_forward_pre_hook(_boom)
            try:
                model.model(**inputs) if call == "forward" else model.model.generate(**inputs, max_new_tokens=2)
            finally:
                handle.remove()

    with prune(model.model, *taps(model)) as session:
        assert differences(before, snapshot(model.model)), "no power: the session leaves no trace while it runs"
        model.model(**inputs)
        model.model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert len(session.trace) == 2 * len(session.plan.stages)
    assert differences(before, snapshot(model.model)) == []
    for call in ("forward", "generate"):
        with pytest.raises(Boom):
            fail(call)
        assert differences(before, snapshot(model.model)) == [], call


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm4v_moe"])
@torch.no_grad()
def test_what_a_model_itself_notes(family: str) -> None:
    """`rope_deltas` are written by plain models too, with the same values."""
    model = subject(family, "sdpa")
    inputs = model.make_inputs(**LAYOUTS["ragged"])
    with prune(model.model, *taps(model)):
        model.model(**inputs)
    model.dense(**inputs)
    assert OWN == ("rope_deltas",)
    ours, theirs = model.model.model.rope_deltas, model.dense.model.rope_deltas
    assert ours.any()
    assert torch.equal(ours, theirs)


@dataclass(frozen=True)
class Faulty(PruningPolicy):
    """Raises when asked."""

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        raise Boom("policy")


FAILING = ("model.vision_tower.encoder.layers.1.self_attn", "model.multi_modal_projector",
           "model.language_model.layers.1.self_attn", "model.language_model.layers.3.mlp", "lm_head")  # fmt: skip
STAGES = (Stage("vision.1", SelfAttention(), Keep(ratio=0.75)), Stage("decoder.2", CrossAttention(), HALF))


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
@pytest.mark.parametrize("where", FAILING)
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_after_a_failing_layer(attention: str, where: str, error: type[BaseException]) -> None:
    """A layer that fails, and Ctrl-C in the middle of it."""
    model = subject("llava", attention).model
    inputs = subject("llava", attention).make_inputs()
    before = snapshot(model)
    plain = model(**inputs).logits

    def stop(*_: Any) -> None:
        raise error

    def fail() -> None:
        with prune(model, *STAGES):
            handle = model.get_submodule(where).register_forward_pre_hook(stop)
            try:
                model(**inputs)
            finally:
                handle.remove()

    with pytest.raises(error):
        fail()
    assert differences(before, snapshot(model)) == []
    assert torch.equal(model(**inputs).logits, plain)


@pytest.mark.parametrize("site", ["vision.0", "input", "decoder.2"])
@pytest.mark.parametrize("call", ["forward", "generate"])
@torch.no_grad()
def test_after_a_failing_policy(site: str, call: str) -> None:
    model = subject("llava", "sdpa")
    before = snapshot(model.model)
    with pytest.raises(Boom, match="policy"), prune(model.model, Stage(site, Faulty(), HALF)):
        model.model(**model.make_inputs()) if call == "forward" else generate(model.model, model.make_inputs())
    assert [key for key in differences(before, snapshot(model.model)) if key != "random"] == []


@dataclass(frozen=True)
class Raises(StoppingCriteria, ScoringPolicy):  # type: ignore[misc]
    """Raises when it is asked for the n-th time, as a policy or as a stopping criterion."""

    error: type[BaseException]
    at: int
    asked: list[object] = field(default_factory=list)

    def count(self) -> None:
        self.asked.append(None)
        if len(self.asked) == self.at:
            raise self.error("interrupted")

    def score(self, tokens: VisualTokens) -> Tensor:
        self.count()
        return tokens.hidden.norm(dim=-1)

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        self.count()
        return torch.zeros(len(input_ids), dtype=torch.bool)


NEVER = Raises(Boom, 0)


@pytest.mark.parametrize(
    ("where", "error"),
    [("policy", Boom), ("criterion", Boom), ("criterion", KeyboardInterrupt), ("layer", KeyboardInterrupt)],
)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llava_next", "gemma3"])
@torch.no_grad()
def test_after_an_interrupted_generation(family: str, where: str, error: type[BaseException]) -> None:
    """At the third prompt: the policy, a stopping criterion, or a tapped layer in the middle of decoding."""
    model = subject(family, "sdpa")
    inputs = model.make_inputs(**LAYOUTS["padded"])
    attention = model.model.get_submodule(model.family.decoder_layers)[1].self_attn
    before = snapshot(model.model)
    place = {"policy": NEVER, "criterion": NEVER, "layer": NEVER}
    place[where] = Raises(error, {"policy": 3, "criterion": 5, "layer": 6}[where])  # calls: one a prompt, two, two
    handle = attention.v_proj.register_forward_pre_hook(lambda *_: place["layer"].count())

    def plan(policy: Raises) -> Items:
        return (*taps(model), Stage("decoder.3", policy, Keep(ratio=0.125)))

    def run(model: Any, prompts: int, policy: Raises, *criteria: Raises) -> tuple[list[Tensor], list[Tensor]]:
        with prune(model, *plan(policy)) as session:
            for _ in range(prompts):
                out = generate(model, inputs, 2, stopping_criteria=StoppingCriteriaList(criteria))
        return [*out.logits], [record.kept for record in session.trace]

    try:
        with pytest.raises(error, match="interrupted"):
            run(model.model, 3, place["policy"], place["criterion"])
    finally:
        handle.remove()
    assert [key for key in differences(before, snapshot(model.model)) if key != "random"] == []
    twin, _ = model.family.build("sdpa")
    for ours, theirs in zip(run(model.model, 1, NEVER), run(twin, 1, NEVER), strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@torch.no_grad()
def test_a_failed_call_does_not_spoil_the_next() -> None:
    """Inside one session: an exception in the middle of a prefill, then other calls, and the same prefill again."""
    model = subject("llava", "sdpa")
    inputs, others = model.make_inputs(), model.make_inputs(batch=2, images=2)
    with prune(model.model, *STAGES) as session:
        expected, tokens = model.model(**inputs).logits, generate(model.model, others, 2).sequences
        for where in FAILING:
            handle = model.model.get_submodule(where).register_forward_pre_hook(_boom)
            with pytest.raises(Boom):
                model.model(**inputs)
            handle.remove()
            assert torch.equal(generate(model.model, others, 2).sequences, tokens), where
        assert torch.equal(model.model(**inputs).logits, expected)
    kept: list[Tensor] = [record.kept for record in session.trace if record.site == "decoder.2"]
    assert torch.equal(kept[0], kept[-1])


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt])
@pytest.mark.parametrize("failing", ["prompt", "token"])
@torch.no_grad()
def test_the_cache_of_an_interrupted_call(failing: str, error: type[BaseException]) -> None:
    """It stays a pruned one, with which a plain model does not go on."""
    model = subject("llava", "sdpa")
    inputs, token = model.make_inputs(), torch.full((1, 1), 17)
    cache = DynamicCache(config=model.model.config)

    def stop(*_: Any) -> None:
        raise error

    def fail() -> None:
        with prune(model.model, *STAGES):
            if failing == "token":
                model.model(**inputs, **{CACHE: cache})
            handle = model.model.get_submodule("model.language_model.layers.3").register_forward_pre_hook(stop)
            try:
                model.model(**(inputs if failing == "prompt" else {"input_ids": token}), **{CACHE: cache})
            finally:
                handle.remove()

    with pytest.raises(error):
        fail()
    with pytest.raises(UnsupportedCacheError, match=r"was pruned inside a prune\(\.\.\.\) session"):
        model.model(input_ids=token, **{CACHE: cache})


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
