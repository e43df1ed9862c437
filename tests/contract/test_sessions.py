"""Sessions beside each other: nested, in threads, after their end, and on prompts without images."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from catalogue import FAMILIES, POLICIES, Items, subject
from invariants import LAYOUTS, assert_near, generate
from snapshots import differences, snapshot

from prunekit import Keep, Stage, prune
from prunekit.cache import CACHE
from prunekit.errors import NeedsError, PruningWarning, SessionError
from prunekit.policies import STAR, CrossAttention, FasterVLM, Random, SelfAttention

HALF = Keep(ratio=0.5)
INPUT = Stage("input", SelfAttention(), HALF)
DECODER = Stage("decoder.2", CrossAttention(), HALF)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "smolvlm", "fast_vlm"])
def test_nested_sessions_on_one_model_are_refused(family: str) -> None:
    """Neither twice on the model, nor on the model and on the core that its head sits on."""
    model, stage = subject(family, "sdpa").model, Stage("input", Random(), HALF)
    for outer, inner in ((model, model), (model, model.model), (model.model, model)):
        refused = pytest.raises(SessionError, match=r"already being pruned.*prune\(model, stage, stage")
        with prune(outer, stage), refused, prune(inner, DECODER):
            pass
    before = snapshot(model)
    with prune(model, stage):  # the refusals left no mark
        pass
    assert differences(before, snapshot(model)) == []


def star(family: str) -> Items:
    """STAR, which taps the vision encoder and the decoder."""
    return (STAR(keep=0.25, visual_queries="visual" if FAMILIES[family].encoder_layers else "embedding"),)


PAIRS = [("llava", "llava"), ("qwen2_5_vl", "internvl"), ("gemma3", "smolvlm"), ("mistral3", "fast_vlm")]


def steps(model: Any, inputs: dict[str, Any]) -> Iterator[torch.Tensor]:
    """The last logits of a prompt without padding, and of two tokens after it, on demand."""
    out = model(**inputs, use_cache=True)
    for _ in range(3):
        yield out.logits[:, -1]
        token = torch.full((len(inputs["input_ids"]), 1), 17)
        out = model(input_ids=token, **{CACHE: out[CACHE]})


@pytest.mark.parametrize("families", PAIRS, ids="-".join)
@torch.no_grad()
def test_two_models_at_once(families: tuple[str, str]) -> None:
    """Nested sessions on two models whose calls take turns; the outer one ends first. Each gives what it does alone."""
    models = [subject(family, attention) for family, attention in zip(families, ("sdpa", "eager"), strict=True)]
    inputs = [model.make_inputs(batch=2, images=2) for model in models]
    alone = []
    for model, given, family in zip(models, inputs, families, strict=True):
        with prune(model.model, *star(family)):
            alone.append(list(steps(model.model, given)))
    first, second = (prune(model.model, *star(family)) for model, family in zip(models, families, strict=True))
    with first, second:
        turns = zip(*(steps(model.model, given) for model, given in zip(models, inputs, strict=True)), strict=True)
        for step, pair in enumerate(turns):
            assert all(torch.equal(ours, expected[step]) for ours, expected in zip(pair, alone, strict=True))
        assert len(first.trace) == len(second.trace) == 2
        first.__exit__(None, None, None)  # the outer one ends first
        assert torch.equal(next(steps(models[1].model, inputs[1])), alone[1][0])
        assert not torch.equal(next(steps(models[0].model, inputs[0])), alone[0][0])
    assert [len(session.trace) for session in (first, second)] == [2, 4]


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


BESIDE = [
    *(("llava", "llava", *names) for names in (("sdpa", "sdpa"), ("eager", "eager"), ("sdpa", "eager"))),
    ("qwen2_5_vl", "gemma3", "eager", "eager"),
    ("internvl", "smolvlm", "sdpa", "sdpa"),
]


@pytest.mark.parametrize("case", BESIDE, ids="-".join)
def test_two_threads(case: tuple[str, str, str, str]) -> None:
    """Two threads generate, each with a model and session of its own, and a third one without any: all as if alone."""
    names = [*case[:2], case[0]]
    models = [FAMILIES[name].build(attention) for name, attention in zip(names, [*case[2:], case[2]], strict=True)]
    inputs = [make_inputs(**LAYOUTS["ragged"], seed=seed) for seed, (_, make_inputs) in enumerate(models)]
    repeats, results, errors = 8, [[], [], []], []

    def run(index: int) -> list[torch.Tensor]:
        model, items = models[index][0], star(names[index])
        with torch.no_grad(), prune(model, *items) if index < 2 else nullcontext() as session:
            out = generate(model, inputs[index], 2)
        assert session is None or len(session.trace) == 2
        return list(out.logits)

    alone = [run(index) for index in range(3)]
    before = [snapshot(model) for model, _ in models]
    start = threading.Barrier(3)

    def work(index: int) -> None:
        try:
            start.wait(10)
            results[index] += [run(index) for _ in range(repeats)]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []
    for expected, found in zip(alone, results, strict=True):
        assert len(found) == repeats
        for logits in found:
            for ours, theirs in zip(logits, expected, strict=True):
                assert_near(ours, theirs, "in a thread", 1e-6)
    for (model, _), state in zip(models, before, strict=True):
        assert [key for key in differences(state, snapshot(model)) if key != "random"] == []


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
            **{CACHE: begun[CACHE]},
        ).logits[:, -1]
    assert [record.site for record in session.trace] == ["input", "input"]
    assert_near(actual, expected, "an image after cached text")


@pytest.mark.parametrize(
    "items",
    [(INPUT,), (FasterVLM(keep=0.5),), (Stage("vision.0", Random(), HALF),)],
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
    with prune(model.model, *POLICIES[policy].build(HALF)) as session:
        expected = model.model(**inputs).logits
        del inputs["pixel_values"]
        actual = model.model(**inputs, mm_encoder_outputs={"image": features}).logits
    assert torch.equal(session.trace[0].kept, session.trace[1].kept)
    assert_near(actual[:, -1], expected[:, -1], "features from elsewhere")
