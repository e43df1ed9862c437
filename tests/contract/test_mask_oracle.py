"""2. Pruning at a site equals a dense run whose later layers mask the dropped tokens."""

from typing import Any

import pytest
import torch
from catalogue import ATTENTION, BUDGETS, POLICIES, THOROUGH, subject
from invariants import LAYOUTS, MULTIPLE, check_mask_oracle, check_trace, generate, same_generation
from oracle import Alive, latest, masked

from prunekit import prune
from prunekit.errors import UnsupportedInputError

SOME = ("random-vision", "self-visual-input", "cross-text", "star", "every-site")


CASES = [*((layout, "ratio") for layout in LAYOUTS), ("padded", "tokens"), ("ragged", "tokens")]


@pytest.mark.parametrize(("layout", "kind"), CASES)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", THOROUGH)
def test_pruning_equals_masking(family: str, attention: str, policy: str, layout: str, kind: str) -> None:
    model, entry, budget = subject(family, attention), POLICIES[policy], BUDGETS[kind]
    inputs = model.make_inputs(**LAYOUTS[layout], seed=len(policy))
    if entry.budget_per_image and budget.tokens and layout in MULTIPLE:
        with pytest.raises(UnsupportedInputError, match=r"several images.*Keep\(ratio"):
            check_mask_oracle(model, entry.build(budget), inputs, entry.records)
        return
    check_mask_oracle(model, entry.build(budget), inputs, entry.records)


SEARCHES: dict[str, dict[str, Any]] = {
    "sampling": {"do_sample": True, "temperature": 0.8, "top_k": 0},
    "beams": {"num_beams": 3},
    "two-of-three-beams": {"num_beams": 3, "num_return_sequences": 2},
    "several-samples": {"do_sample": True, "num_return_sequences": 3, "top_k": 0},
}


@pytest.mark.parametrize("search", SEARCHES.values(), ids=SEARCHES)
@pytest.mark.parametrize("policy", SOME)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", THOROUGH)
def test_every_way_to_generate(family: str, attention: str, policy: str, search: dict[str, Any]) -> None:
    model, entry = subject(family, attention), POLICIES[policy]
    inputs = model.make_inputs(**LAYOUTS["ragged"])
    check_mask_oracle(model, entry.build(BUDGETS["ratio"]), inputs, entry.records, steps=5, **search)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_without_a_cache(family: str, attention: str, policy: str) -> None:
    """The choice made for the prompt is the one made with a cache, at every step."""
    model, entry = subject(family, attention), POLICIES[policy]
    inputs, items = model.make_inputs(**LAYOUTS["padded"]), entry.build(BUDGETS["ratio"])
    with prune(model.model, *items) as session:
        cached = generate(model.model, inputs)
        alive = Alive(latest(session.trace, entry.records), inputs, model.family)
        uncached = generate(model.model, inputs, use_cache=False)
    same_generation(uncached, cached, "without a cache")
    with masked(model.dense, alive, model.family):
        same_generation(uncached, generate(model.dense, inputs, use_cache=False), "without a cache")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_the_trace_is_in_order(family: str, policy: str, layout: str) -> None:
    model, entry = subject(family, "sdpa"), POLICIES[policy]
    inputs = model.make_inputs(**LAYOUTS[layout])
    with prune(model.model, *entry.build(BUDGETS["ratio"])) as session:
        model.model(**inputs)
        model.model(**inputs)
    assert len(session.trace) == 2 * entry.records
    check_trace(session.trace[: entry.records], inputs, model)
    last = session.trace[-1]
    total = [len(row[row >= 0]) for row in last.kept]
    assert total == [max(1, visual // 4) for visual in last.visual]


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", THOROUGH)
def test_a_row_without_images(family: str, attention: str) -> None:
    """In a batch with others, a text-only row keeps what it has: its text."""
    model, entry = subject(family, attention), POLICIES["star"]
    inputs = model.make_inputs(batch=3, images=(1, 0, 2), text=(6, 9, 4))
    check_mask_oracle(model, entry.build(BUDGETS["ratio"]), inputs, entry.records)
