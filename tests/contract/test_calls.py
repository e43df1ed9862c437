"""Ways to call a model that a session has to survive: each equals the oracle, or a plainer call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from catalogue import ATTENTION, BUDGETS, POLICIES, Items, Subject, subject
from invariants import LAYOUTS, assert_near, check_mask_oracle, generate, same_generation
from oracle import Alive, Inputs, latest, masked
from torch import Tensor

from prunekit import Keep, Stage, prune
from prunekit.cache import CACHE
from prunekit.errors import PrunekitError
from prunekit.policies import CrossAttention, Random, SelfAttention

INPUT = Stage("input", SelfAttention(queries="embedding"), Keep(ratio=0.5))
DECODER = Stage("decoder.2", CrossAttention(), Keep(ratio=0.25))
CHOICES: dict[str, Items] = {"input": (INPUT,), "decoder": (DECODER,), "both": (INPUT, DECODER)}
every_choice = pytest.mark.parametrize("items", CHOICES.values(), ids=CHOICES)


@pytest.fixture(params=ATTENTION)
def model(request: pytest.FixtureRequest) -> Subject:
    return subject("llava", request.param)


def right_padded(inputs: Inputs) -> Inputs:
    order = (1 - inputs["attention_mask"]).argsort(dim=1, stable=True)
    moved = {name: inputs[name].gather(1, order) for name in ("input_ids", "attention_mask")}
    return moved | {"pixel_values": inputs["pixel_values"]}


@pytest.mark.parametrize("policy", ["random-vision", "self-visual-input", "cross-text", "every-site"])
@torch.no_grad()
def test_right_padding(model: Subject, policy: str) -> None:
    """As for scoring answers: the last column of a row is not its last token."""
    entry = POLICIES[policy]
    inputs = right_padded(model.make_inputs(**LAYOUTS["ragged"]))
    with prune(model.model, *entry.build(BUDGETS["ratio"])) as session:
        logits = model.model(**inputs).logits
    alive = Alive(session.trace, inputs, model.family)
    with masked(model.dense, alive, model.family):
        expected = model.dense(**inputs).logits
    final = alive.final()
    assert_near(logits[final], expected[final], "right padding")


@every_choice
@torch.no_grad()
def test_without_a_mask(model: Subject, items: Items) -> None:
    inputs = model.make_inputs()
    with prune(model.model, *items):
        expected = model.model(**inputs).logits[:, -1]
        del inputs["attention_mask"]
        for use_cache in (True, False):
            assert_near(model.model(**inputs, use_cache=use_cache).logits[:, -1], expected, f"use_cache={use_cache}")
        with torch.inference_mode():
            assert_near(model.model(**inputs).logits[:, -1], expected, "inference mode")


@every_choice
@torch.no_grad()
def test_embeddings_instead_of_ids(model: Subject, items: Items) -> None:
    inputs = model.make_inputs(**LAYOUTS["padded"])
    with prune(model.model, *items) as session:
        expected = model.model(**inputs).logits[:, -1]
        embeds = model.model.get_input_embeddings()(inputs.pop("input_ids"))
        actual = model.model(inputs_embeds=embeds, **inputs).logits[:, -1]
    assert_near(actual, expected, "embeddings")
    assert torch.equal(session.trace[0].kept, session.trace[-len(items)].kept)


@every_choice
@torch.no_grad()
def test_the_core_model_and_positional_arguments(model: Subject, items: Items) -> None:
    inputs = model.make_inputs()
    core = model.model.model
    with prune(model.model, *items):
        expected = core(**inputs).last_hidden_state[:, -1]
        ids, pixels, mask = (inputs[name] for name in ("input_ids", "pixel_values", "attention_mask"))
        assert torch.equal(core(ids, pixels, mask).last_hidden_state[:, -1], expected)
        assert torch.equal(model.model(ids, pixels, mask).logits[:, -1], model.model(**inputs).logits[:, -1])
    with prune(core, *items):
        assert torch.equal(core(**inputs).last_hidden_state[:, -1], expected)


@every_choice
@torch.no_grad()
def test_hidden_states_loss_and_last_logits(model: Subject, items: Items) -> None:
    inputs = model.make_inputs(**LAYOUTS["padded"])
    ids, real = inputs["input_ids"], inputs["attention_mask"] == 1
    visual = ids == model.family.image_token
    text = real & ~visual & (real & ~visual).roll(1, 1)  # predicted by text: a dropped token predicts nothing
    labels = ids.masked_fill(~text, -100)
    with prune(model.model, *items) as session:
        plain = model.model(**inputs).logits
        out = model.model(**inputs, output_hidden_states=True, labels=labels)
        last = model.model(**inputs, logits_to_keep=2).logits
    assert torch.equal(out.logits, plain)
    assert torch.equal(last, plain[:, -2:])
    assert len(out.hidden_states) == 5
    with masked(model.dense, Alive(latest(session.trace, len(items)), inputs, model.family), model.family):
        expected = model.dense(**inputs, labels=labels).loss
    assert_near(out.loss, expected, "loss")


@every_choice
def test_gradients_flow(items: Items) -> None:
    """Through the kept tokens to the pixels, and to no dropped one's place but by attention before the stage."""
    model = subject("llava", "sdpa")
    inputs = model.make_inputs()
    pixels = inputs["pixel_values"].requires_grad_()
    with prune(model.model, *items):
        model.model(**inputs).logits[:, -1].sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.isfinite().all()
    assert pixels.grad.abs().sum() > 0
    model.model.zero_grad(set_to_none=True)


@every_choice
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(items: Items, dtype: torch.dtype) -> None:
    model, make_inputs = subject("llava", "sdpa").family.build("sdpa")
    model = model.to(dtype)
    inputs = make_inputs(**LAYOUTS["padded"])
    inputs["pixel_values"] = inputs["pixel_values"].to(dtype)
    with prune(model, *items):
        out = generate(model, inputs, 3)
    assert all(logits.isfinite().all() for logits in out.logits)


class Joined:
    """Two prompts on one cache: what each layer may look at, with what was generated between them."""

    def __init__(self, first: Alive, between: int, second: Alive) -> None:
        self.first, self.between, self.second, self.sites = first, between, second, ()

    def decoder(self, layer: int) -> Tensor:
        before, after = self.first.decoder(layer), self.second.decoder(layer)
        return torch.cat([before, torch.ones(len(before), self.between, dtype=torch.bool), after], dim=1)

    def encoder(self, layer: int) -> None:
        return None


@every_choice
@pytest.mark.parametrize("layout", ["single", "ragged"])
@torch.no_grad()
def test_a_second_image_on_the_same_cache(model: Subject, items: Items, layout: str) -> None:
    """Each prompt's image is pruned by itself, and later tokens see what is left of both."""
    inputs = model.make_inputs(**LAYOUTS[layout])
    again = model.make_inputs(batch=len(inputs["input_ids"]), text=5, seed=9)
    steps = 3

    def go_on(network: Any, out: Any) -> list[Tensor]:
        start = out.sequences.shape[1] - 1
        ids = torch.cat([out.sequences, again["input_ids"]], dim=1)
        mask = torch.cat(
            [inputs["attention_mask"], torch.ones(len(ids), ids.shape[1] - inputs["input_ids"].shape[1])], 1
        )
        turn = network(
            input_ids=ids[:, start:],
            attention_mask=mask.long(),
            pixel_values=again["pixel_values"],
            **{CACHE: out[CACHE]},
        )
        token = torch.full((len(ids), 1), 6)
        mask = torch.cat([mask, torch.ones(len(ids), 1)], dim=1).long()
        after = network(input_ids=token, attention_mask=mask, **{CACHE: turn[CACHE]})
        return [turn.logits[:, -4:], after.logits]

    with prune(model.model, *items) as session:
        actual = go_on(model.model, generate(model.model, inputs, steps))
    assert len(session.trace) == 2 * len(items)
    parts = session.trace[: len(items)], session.trace[len(items) :]
    joined: Any = Joined(Alive(parts[0], inputs, model.family), steps, Alive(parts[1], again, model.family))
    with masked(model.dense, joined, model.family):
        expected = go_on(model.dense, generate(model.dense, inputs, steps))
    for ours, theirs in zip(actual, expected, strict=True):
        assert_near(ours, theirs, "second image")


@every_choice
@torch.no_grad()
def test_a_generated_placeholder_is_no_image(model: Subject, items: Items) -> None:
    """A model may generate the id of the image placeholder; that is a word like any other."""
    inputs = model.make_inputs()
    token = torch.tensor([[model.family.image_token]])
    with prune(model.model, *items) as session:
        out = model.model(**inputs, use_cache=True)
        actual = model.model(input_ids=token, **{CACHE: out[CACHE]}).logits
        assert len(session.trace) == len(items)
    with masked(model.dense, Alive(session.trace, inputs, model.family), model.family):
        out = model.dense(**inputs, use_cache=True)
        expected = model.dense(input_ids=token, **{CACHE: out[CACHE]}).logits
    assert_near(actual, expected, "a generated placeholder")


OTHER: dict[str, dict[str, Any]] = {
    "prompt lookup": {"prompt_lookup_num_tokens": 2},
    "chunked prefill": {"prefill_chunk_size": 16},
    "quantised cache": {"cache_implementation": "quantized"},
    "offloaded cache": {"cache_implementation": "offloaded"},
    "sliding": {"cache_implementation": "dynamic"},
}


@every_choice
@pytest.mark.parametrize("how", OTHER.values(), ids=OTHER)
@torch.no_grad()
def test_other_ways_to_generate_are_right_or_refused(items: Items, how: dict[str, Any]) -> None:
    model = subject("llava", "sdpa")
    inputs = model.make_inputs()
    try:
        plain = generate(model.dense, inputs, 5, **how)
    except (ImportError, RuntimeError, ValueError, AttributeError, AssertionError) as error:
        pytest.skip(f"the plain model cannot do it here: {type(error).__name__}")
    if not torch.equal(plain.sequences, generate(model.dense, inputs, 5).sequences):
        pytest.skip("the plain model does it wrongly here")  # chunks of a prompt without its images
    with prune(model.model, *items) as session:
        expected = generate(model.model, inputs, 5)
        try:
            actual = generate(model.model, inputs, 5, **how)
        except PrunekitError:
            return
        assert torch.equal(actual.sequences, expected.sequences)
    assert session.trace


@torch.no_grad()
def test_the_same_session_serves_many_shapes(model: Subject) -> None:
    """One session, prompts of all shapes in turn, each as right as in a session of its own."""
    calls = [model.make_inputs(**layout, seed=seed) for seed, layout in enumerate([*LAYOUTS.values(), {"images": 3}])]
    alone = []
    for inputs in calls:
        with prune(model.model, INPUT, DECODER):
            alone.append(generate(model.model, inputs, 3))
    with prune(model.model, INPUT, DECODER):
        for inputs, expected in zip(calls, alone, strict=True):
            same_generation(generate(model.model, inputs, 3), expected, "in turn")


@pytest.mark.parametrize("ratio", [1 / 36, 0.1, 0.3])
def test_the_same_small_share_at_every_site(model: Subject, ratio: float) -> None:
    """Floors of an image and of its row differ: 3 x 3 of 36 are 9, a tenth of 108 is 10. That is no mistake."""
    keep = Keep(ratio=ratio)
    stages = (
        Stage("vision.1", Random(), keep),
        Stage("input", Random(seed=1), keep),
        Stage("decoder.3", Random(), keep),
    )
    check_mask_oracle(model, stages, model.make_inputs(**LAYOUTS["ragged"]), 3)
