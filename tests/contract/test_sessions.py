"""Sessions beside each other: nested, in threads, after their end, and on prompts without images."""

import threading
import warnings
from typing import Any

import pytest
import torch
from catalogue import BUDGETS, FAMILIES, POLICIES, subject
from invariants import LAYOUTS, assert_near, generate

from prunekit import Keep, Stage, prune
from prunekit.errors import NeedsError, PruningWarning, SessionError
from prunekit.policies import CrossAttention, FasterVLM, Random, SelfAttention

INPUT = Stage("input", SelfAttention(), Keep(ratio=0.5))
DECODER = Stage("decoder.2", CrossAttention(), Keep(ratio=0.5))


def test_nested_sessions_on_one_model_are_refused() -> None:
    model = subject("llava", "sdpa").model
    with prune(model, INPUT), pytest.raises(SessionError, match=r"(?i)already"), prune(model, DECODER):
        pass
    with prune(model, INPUT):  # the refusal left no mark
        pass


@torch.no_grad()
def test_two_models_nested() -> None:
    first, second = subject("llava", "sdpa"), subject("llava", "eager")
    inputs = first.make_inputs()
    alone: list[Any] = []
    for model, stage in ((first, INPUT), (second, DECODER)):
        with prune(model.model, stage):
            alone.append(generate(model.model, inputs, 3))
    with prune(first.model, INPUT) as outer, prune(second.model, DECODER) as inner:
        nested = [generate(first.model, inputs, 3), generate(second.model, inputs, 3)]
    assert [record.site for record in outer.trace] == ["input"]
    assert [record.site for record in inner.trace] == ["decoder.2"]
    for one, other in zip(alone, nested, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.logits, other.logits, strict=True))


@torch.no_grad()
def test_a_session_object_after_its_end() -> None:
    """Using it again is refused by name, and the trace of the first time stays readable."""
    model = subject("llava", "sdpa")
    session = prune(model.model, INPUT)
    with session as entered:
        model.model(**model.make_inputs())
    kept = entered.trace[0].kept.clone()
    with pytest.raises(SessionError, match=r"prune\("), session:
        pass
    assert torch.equal(entered.trace[0].kept, kept)


@pytest.mark.parametrize("attention", [("sdpa", "sdpa"), ("eager", "eager"), ("sdpa", "eager")], ids="-".join)
def test_two_threads(attention: tuple[str, str]) -> None:
    """Each thread prunes a model of its own; both give what they give alone."""
    models = [FAMILIES["llava"].build(name) for name in attention]
    inputs = [make_inputs(**LAYOUTS["ragged"], seed=seed) for seed, (_, make_inputs) in enumerate(models)]
    items = [POLICIES["star"].build(BUDGETS["ratio"]), POLICIES["self-cls-vision"].build(BUDGETS["ratio"])]

    def run(index: int) -> torch.Tensor:
        model, _ = models[index]
        with torch.no_grad(), prune(model, *items[index]) as session:
            logits = model(**inputs[index]).logits
        assert session.trace
        return logits[:, -1]

    alone = [run(0), run(1)]
    results: list[list[torch.Tensor]] = [[], []]
    errors: list[BaseException] = []
    start = threading.Barrier(2)

    def work(index: int) -> None:
        try:
            start.wait(10)
            results[index] += [run(index) for _ in range(8)]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    for expected, found in zip(alone, results, strict=True):
        assert len(found) == 8
        for logits in found:
            assert_near(logits, expected, "in a thread", 1e-6)


@pytest.mark.parametrize("stage", [INPUT, DECODER], ids=["input", "decoder"])
@torch.no_grad()
def test_a_prompt_without_images_runs_dense_and_warns_once(stage: Stage) -> None:
    model = subject("llava", "sdpa").model
    inputs = {"input_ids": torch.arange(11, 18)[None], "attention_mask": torch.ones(1, 7, dtype=torch.long)}
    plain, tokens = model(**inputs).logits, generate(model, inputs, 3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with prune(model, stage) as session:
            assert torch.equal(model(**inputs).logits, plain)
            assert torch.equal(model(**inputs).logits, plain)
            assert torch.equal(generate(model, inputs, 3).sequences, tokens.sequences)
    assert [warning.category for warning in caught] == [PruningWarning]
    assert "image" in str(caught[0].message) or "visual" in str(caught[0].message)
    assert session.trace == []


@torch.no_grad()
def test_text_first_then_an_image() -> None:
    """The second call's image is pruned, on a cache that starts with text only."""
    model = subject("llava", "sdpa")
    inputs = model.make_inputs()
    with prune(model.model, INPUT) as session:
        expected = model.model(**inputs).logits[:, -1]
        first = int((inputs["input_ids"][0] == model.family.image_token).int().argmax())
        if first == 0:
            pytest.skip("the prompt starts with its image")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PruningWarning)
            begun = model.model(input_ids=inputs["input_ids"][:, :first], use_cache=True)
        actual = model.model(
            input_ids=inputs["input_ids"][:, first:],
            attention_mask=inputs["attention_mask"],
            pixel_values=inputs["pixel_values"],
            past_key_values=begun.past_key_values,
        ).logits[:, -1]
    assert [record.site for record in session.trace] == ["input", "input"]
    assert_near(actual, expected, "an image after cached text")


@pytest.mark.parametrize(
    "items",
    [(INPUT,), (FasterVLM(keep=0.5),), (Stage("vision.0", Random(), Keep(ratio=0.5)),)],
    ids=["self-attention", "fastervlm", "vision-site"],
)
@torch.no_grad()
def test_features_from_elsewhere(items: Any) -> None:
    """A policy that reads the vision encoder cannot run where the encoder did not."""
    model = subject("llava", "sdpa")
    inputs = model.make_inputs()
    features = model.model.get_image_features(pixel_values=inputs.pop("pixel_values"))
    with prune(model.model, *items), pytest.raises(NeedsError, match=r"(?i)vision (encoder|tower)"):
        model.model(**inputs, mm_encoder_outputs={"image": features})


@pytest.mark.parametrize("policy", ["random-input", "self-embedding-input", "cross-text"])
@torch.no_grad()
def test_features_from_elsewhere_suffice_for_others(policy: str) -> None:
    model = subject("llava", "sdpa")
    inputs = model.make_inputs()
    pixels = inputs["pixel_values"]
    features = model.model.get_image_features(pixel_values=pixels)
    with prune(model.model, *POLICIES[policy].build(Keep(ratio=0.5))) as session:
        expected = model.model(**inputs).logits
        del inputs["pixel_values"]
        actual = model.model(**inputs, mm_encoder_outputs={"image": features}).logits
    assert torch.equal(session.trace[0].kept, session.trace[1].kept)
    assert_near(actual[:, -1], expected[:, -1], "features from elsewhere")
