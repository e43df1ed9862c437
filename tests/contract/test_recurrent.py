"""Decoders with recurrent layers or convolutions between those with attention: a dropped token never comes to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from catalogue import ATTENTION, Family, Items, Subject, build
from invariants import (
    FAR,
    LAYOUTS,
    assert_near,
    check_identity,
    check_rows_alone,
    check_trace,
    generate,
    positions_behind,
)
from oracle import Alive, Inputs, latest
from shorter import continued, shorter
from torch import Tensor

from prunekit import Keep, Stage, prune
from prunekit.adapter import adapter_for
from prunekit.cache import CACHE, PrunedLayer
from prunekit.errors import NeedsError, PruningWarning, UnsupportedInputError
from prunekit.models.tiny.builders.common import IMAGE, VIDEO
from prunekit.policies import CrossAttention, FastV, Random, SelfAttention, UniformGrid

NEAR = 5e-5  # recurrent layers add up in another order when they go through a prompt than token by token
DRIFT = {"nemotron_h_omni": 1e-3}  # decoding token by token drifts from a prompt read at once, without any session too
STEPS = 4

EIGHT = (("layers", 8),)  # every fourth has attention
FAMILIES = [
    Family("qwen3_5", EIGHT, tokens=(IMAGE, VIDEO), video=True),
    Family("lfm2_vl"),
]
MORE = [
    Family("minicpmv4_6", tokens=(IMAGE, VIDEO), video=True),
    Family("minicpmv4_7", tokens=(IMAGE, VIDEO), video=True),
    Family("minicpm_ocr", tokens=(IMAGE, VIDEO), video=True),
    Family("lfm3_vl"),
    Family("nemotron_h_omni", decoder_layers="language_model.model.layers"),
    Family("qwen3_5_moe", EIGHT, tokens=(IMAGE, VIDEO), video=True),
]


EVERY = [
    *(pytest.param(family, id=family.name) for family in FAMILIES),
    *(pytest.param(family, id=family.name, marks=pytest.mark.slow) for family in MORE),
]


def plan(name: str, model: Any) -> Items:
    """Stages by name; those that read attention come after a layer that has some."""
    adapter = adapter_for(model)
    able = [layer for layer in range(adapter.depth) if adapter.keys_of(layer) is not None]
    if name == "input":
        return (Stage("input", Random(seed=3), Keep(ratio=0.25)),)
    if name == "three-stages":
        stages = Stage("input", Random(), Keep(ratio=0.75)), Stage("decoder.1", UniformGrid(), Keep(ratio=0.5))
        return (*stages, Stage(f"decoder.{adapter.depth - 1}", Random(seed=5), Keep(ratio=0.25)))
    return (Stage(f"decoder.{able[0] + 1}", CrossAttention(), Keep(ratio=0.25)),)


PLANS = {"input": 1, "three-stages": 3, "cross": 1}


def expected(subject: Subject, alive: Alive, inputs: Any, row: int, tokens: Tensor) -> Tensor:
    """Logits of a sample's columns that are left in the last layer, and of the tokens behind them."""
    alone = continued(inputs.rows[row], tokens)
    with shorter(subject.dense, subject.family, alive, row, len(tokens)):
        logits: Tensor = subject.dense(**alone, use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_pruning_equals_a_shorter_prompt(family: Family, name: str, layout: str) -> None:
    subject = build(family, "sdpa")
    check_shorter(subject, plan(name, subject.model), subject.make_inputs(**LAYOUTS[layout], seed=1), PLANS[name])


@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_rows_of_one_length_that_keep_different_numbers(family: Family) -> None:
    subject = build(family, "sdpa")
    lengths = subject.make_inputs(batch=2, images=(1, 2), text=4)["attention_mask"].sum(1).tolist()
    inputs = subject.make_inputs(batch=2, images=(1, 2), text=(4 + lengths[1] - lengths[0], 4), seed=1)
    assert inputs["attention_mask"].all()  # the model itself makes no mask for its recurrent layers
    check_shorter(subject, plan("three-stages", subject.model), inputs, 3)


@pytest.mark.parametrize("family", [each for each in EVERY if each.values[0].video])
@torch.no_grad()
def test_videos(family: Family) -> None:
    subject = build(family, "sdpa")
    inputs = subject.make_inputs(batch=2, images=0, videos=(1, 2), text=(6, 9), seed=1)
    check_shorter(subject, plan("three-stages", subject.model), inputs, 3)


def check_shorter(subject: Subject, items: Items, inputs: Any, records: int) -> None:
    with prune(subject.model, *items) as session:
        logits = subject.model(**inputs).logits
        first = latest(session.trace, records)
        out = generate(subject.model, inputs, STEPS)
    check_trace(first, inputs, subject)
    alive = Alive(first, inputs, subject.family)
    plain = subject.dense(**inputs).logits
    length = inputs["input_ids"].shape[1]
    for row in range(len(inputs["input_ids"])):
        tokens = out.sequences[row, length:]
        wanted = expected(subject, alive, inputs, row, tokens[:-1])
        prompt = alive.final()[row]
        held = int(prompt.sum())
        assert_near(logits[row, prompt], wanted[:held], f"row {row}, prefill", NEAR)
        for step in range(STEPS):
            drift = DRIFT.get(subject.family.name, NEAR)
            assert_near(out.logits[step][row], wanted[held - 1 + step], f"row {row}, step {step}", drift)
    assert (logits - plain)[:, -1].abs().max() > FAR


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", EVERY)
def test_a_session_that_keeps_everything_changes_no_bit(family: Family, attention: str) -> None:
    subject = build(family, attention)
    keep = Keep(ratio=1.0)
    items = Stage("input", Random(), keep), Stage("decoder.1", UniformGrid(), keep)
    check_identity(subject, items, subject.make_inputs(**LAYOUTS["ragged"], seed=2))


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("family", EVERY)
def test_rows_alone(family: Family, name: str) -> None:
    subject = build(family, "eager")
    check_rows_alone(subject, plan(name, subject.model), subject.make_inputs(**LAYOUTS["ragged"], seed=2), PLANS[name])


@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_layers_with_attention_hold_the_planned_keys(family: Family) -> None:
    subject = build(family, "sdpa")
    inputs = subject.make_inputs(**LAYOUTS["padded"], seed=3)
    with prune(subject.model, *plan("three-stages", subject.model)) as session:
        cache = subject.model(**inputs, use_cache=True)[CACHE]
    alive, adapter = Alive(session.trace, inputs, family), adapter_for(subject.model)
    for layer, held in enumerate(cache.layers):
        if adapter.keys_of(layer) is not None:
            assert held.keys.shape[-2] == alive.planned(layer)
        else:
            assert not isinstance(held, PrunedLayer)


@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_a_later_question_goes_on_with_the_state(family: Family) -> None:
    subject = build(family, "sdpa")
    inputs = subject.make_inputs(seed=4)
    more = torch.tensor([21, 33, 18, 40])
    with prune(subject.model, *plan("three-stages", subject.model)) as session:
        first = subject.model(**inputs, use_cache=True)
        whole = torch.ones(1, inputs["input_ids"].shape[1] + len(more), dtype=torch.long)
        later: Inputs = {"input_ids": more[None], "attention_mask": whole}
        later |= positions_behind(subject.model, whole, len(more))
        logits = subject.model(**later, **{CACHE: first[CACHE]}).logits[0]
    alive = Alive(session.trace, inputs, family)
    assert_near(logits, expected(subject, alive, inputs, 0, more)[-len(more) :], "the later question", NEAR)


@pytest.mark.parametrize("family", EVERY)
@torch.no_grad()
def test_beams_take_their_state_along(family: Family) -> None:
    subject = build(family, "sdpa")
    inputs = subject.make_inputs(batch=2, text=(6, 9), seed=5)
    plain, anew = (generate(subject.dense, inputs, 3, num_beams=3, use_cache=cached) for cached in (True, False))
    if not torch.equal(plain.sequences, anew.sequences):
        pytest.skip("the plain model itself finds other beams with a cache than without one")
    with prune(subject.model, *plan("three-stages", subject.model)) as session:
        out = generate(subject.model, inputs, 3, num_beams=3)
        again = generate(subject.model, inputs, 3, num_beams=3, use_cache=False)
    assert len(session.trace) == 2 * 3
    assert torch.equal(out.sequences, again.sequences)


def test_attention_that_is_not_there() -> None:
    model = build(FAMILIES[0], "sdpa").model  # layers 3 and 7 have attention
    with pytest.raises(NeedsError, match=r"decoder layer 1 of Qwen3_5.*'linear_attention' and has none.* are 3, 7; "):
        prune(model, FastV(layer=2))
    with pytest.raises(NeedsError, match=r"decoder layer 2 of Qwen3_5"):
        prune(model, Stage("decoder.2", CrossAttention(ahead=True), Keep(ratio=0.5)))


@torch.no_grad()
def test_padding_in_the_middle_is_refused() -> None:
    subject = build(FAMILIES[1], "sdpa")
    first, second = subject.make_inputs(batch=2, images=0), subject.make_inputs(batch=2, images=(1, 2), text=(21, 2))
    whole = torch.cat([first["attention_mask"], second["attention_mask"]], 1)
    with prune(subject.model, Stage("input", Random(), Keep(ratio=0.5))):
        with pytest.warns(PruningWarning):
            cache = subject.model(**first, use_cache=True)[CACHE]
        with pytest.raises(UnsupportedInputError, match=r"layer 0 is recurrent.*in the middle"):
            subject.model(**{**second, "attention_mask": whole, CACHE: cache})


def test_the_encoder_of_qwen3_5() -> None:
    subject = build(FAMILIES[0], "sdpa")
    inputs = subject.make_inputs(images=2)
    stages = Stage("vision.0", SelfAttention(), Keep(ratio=0.5)), Stage("input", SelfAttention(), Keep(ratio=0.25))
    with torch.no_grad(), prune(subject.model, *stages) as session:
        subject.model(**inputs)
    visual = session.trace[0].visual[0]
    assert [record.kept.shape[1] for record in session.trace] == [visual // 2, visual // 4]
