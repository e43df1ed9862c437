"""4, 5. Every layer's KV cache has the planned keys, all of the text among them; conversations go on with it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from catalogue import ATTENTION, BUDGETS, POLICIES, THOROUGH, Subject, subject
from invariants import LAYOUTS, assert_near, check_cache, generate, same_generation
from oracle import Alive, Inputs, latest, masked
from transformers import StaticCache

from prunekit import Keep, prune
from prunekit.cache import CACHE
from prunekit.errors import SessionError, UnsupportedCacheError

SOME = ("random-vision", "self-visual-input", "cross-text", "star", "every-site")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", THOROUGH)
def test_planned_lengths(family: str, attention: str, policy: str, layout: str) -> None:
    model, entry = subject(family, attention), POLICIES[policy]
    inputs = model.make_inputs(**LAYOUTS[layout], seed=2)
    check_cache(model, entry.build(BUDGETS["ratio"]), inputs, entry.records)


def second_prompt(sequences: torch.Tensor, inputs: Inputs, text: int = 4) -> Inputs:
    """A prompt that goes on after what was generated, with more text."""
    batch = len(sequences)
    more = torch.arange(batch * text).view(batch, text) % 7 + 11
    ids = torch.cat([sequences, more], dim=1)
    mask = inputs["attention_mask"]
    mask = torch.cat([mask, mask.new_ones(batch, ids.shape[1] - mask.shape[1])], dim=1)
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("layout", ["single", "ragged"])
@pytest.mark.parametrize("policy", SOME)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_a_second_prompt_by_forward(family: str, attention: str, policy: str, layout: str) -> None:
    model, entry = subject(family, attention), POLICIES[policy]
    inputs = model.make_inputs(**LAYOUTS[layout])

    def go_on(network: Any, out: Any) -> torch.Tensor:
        full = second_prompt(out.sequences, inputs)
        cached = out.sequences.shape[1] - 1  # the last token was generated, but has not been read
        new = {"input_ids": full["input_ids"][:, cached:], "attention_mask": full["attention_mask"]}
        return network(**new, **{CACHE: out[CACHE]}).logits

    with prune(model.model, *entry.build(BUDGETS["ratio"])) as session:
        logits = go_on(model.model, generate(model.model, inputs, 4))
        records = latest(session.trace, entry.records)
        assert len(session.trace) == entry.records
    with masked(model.dense, Alive(records, inputs, model.family), model.family):
        expected = go_on(model.dense, generate(model.dense, inputs, 4))
    assert_near(logits, expected, "second prompt")


@pytest.mark.parametrize("copied", [False, True], ids=["same-cache", "copied-cache"])
@pytest.mark.parametrize("layout", ["single", "ragged"])
@pytest.mark.parametrize("policy", SOME)
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_a_second_prompt_by_generate(family: str, policy: str, layout: str, copied: bool) -> None:
    model, entry = subject(family, "sdpa"), POLICIES[policy]
    inputs = model.make_inputs(**LAYOUTS[layout])

    def go_on(network: Any, out: Any) -> Any:
        cache = copy.deepcopy(out[CACHE]) if copied else out[CACHE]
        once = generate(network, second_prompt(out.sequences, inputs), 3, **{CACHE: cache})
        if copied:  # the original was not touched: it can go on too, and says the same
            again = generate(network, second_prompt(out.sequences, inputs), 3, **{CACHE: out[CACHE]})
            same_generation(again, once, "original after its copy")
        return once

    with prune(model.model, *entry.build(BUDGETS["ratio"])) as session:
        actual = go_on(model.model, generate(model.model, inputs, 4))
        records = latest(session.trace, entry.records)
        assert len(session.trace) == entry.records
    with masked(model.dense, Alive(records, inputs, model.family), model.family):
        expected = go_on(model.dense, generate(model.dense, inputs, 4))
    same_generation(actual, expected, "second prompt")


def _prefill(model: Subject, policy: str = "star") -> tuple[Inputs, Any]:
    inputs = model.make_inputs()
    with torch.no_grad(), prune(model.model, *POLICIES[policy].build(Keep(ratio=0.5))):
        return inputs, model.model(**inputs, use_cache=True)[CACHE]


@pytest.mark.parametrize("policy", SOME)
@torch.no_grad()
def test_a_pruned_cache_is_refused_outside_of_its_session(policy: str) -> None:
    model = subject("llava", "sdpa")
    _, cache = _prefill(model, policy)
    with pytest.raises((UnsupportedCacheError, SessionError), match="cache"):
        model.model(input_ids=torch.tensor([[5]]), **{CACHE: cache})


@torch.no_grad()
def test_a_pruned_cache_goes_on_in_a_later_session() -> None:
    model = subject("llava", "sdpa")
    inputs, cache = _prefill(model)
    items = POLICIES["star"].build(Keep(ratio=0.5))
    token = {"input_ids": torch.tensor([[5]])}
    with prune(model.model, *items) as session:
        whole = model.model(**inputs, use_cache=True)
        records = latest(session.trace, 2)
        expected = model.model(**token, **{CACHE: whole[CACHE]}).logits
    with prune(model.model, *items):
        try:
            actual = model.model(**token, **{CACHE: cache}).logits
        except (UnsupportedCacheError, SessionError):
            return  # refused by name is as good
    assert records
    assert_near(actual, expected, "later session")


def _static(model: Any) -> Any:
    return {CACHE: StaticCache(config=model.config.get_text_config(), max_cache_len=64)}


REFUSED: dict[str, Callable[[Any], dict[str, Any]]] = {
    "static": _static,
    "static-by-name": lambda model: {"cache_implementation": "static"},
}


@pytest.mark.parametrize("make", REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("policy", ["star", "cross-text", "self-visual-input"])
@torch.no_grad()
def test_static_caches_are_refused(policy: str, make: Callable[[Any], dict[str, Any]]) -> None:
    model = subject("llava", "sdpa")
    with (
        prune(model.model, *POLICIES[policy].build(Keep(ratio=0.5))),
        pytest.raises(UnsupportedCacheError, match=r"StaticCache.*DynamicCache"),
    ):
        generate(model.model, model.make_inputs(), 3, **make(model.model))
    _prefill(model)  # and the model still works
