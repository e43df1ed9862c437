"""All families: what the invariants ask for, of a choice of policies that touches every site.

Each test is one prompt and eight generated tokens against a dense twin whose layers mask the dropped tokens: the trace,
the logits of both phases, and the length of every layer's cache.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from catalogue import ATTENTION, FAMILIES, PLANS, RECORDS, subject
from invariants import (
    FAR,
    LAYOUTS,
    assert_near,
    check_identity,
    check_rows_alone,
    check_trace,
    generate,
    same_generation,
)
from oracle import Alive, Inputs, masked
from torch import Tensor

from prunekit import Keep, Stage, prune
from prunekit.cache import CACHE
from prunekit.errors import NeedsError, ScoresError, SiteError
from prunekit.policies import CrossAttention, Random, UniformGrid

NEEDS_ENCODER = {"star": NeedsError, "inside-the-encoder": SiteError}
VIDEO = {
    "video": {"images": 0, "videos": 1},
    "video-batch": {"batch": 3, "images": (1, 0, 0), "videos": (0, 1, 2), "text": (5, 8, 6)},
}
WITH_VIDEO = ("random-input", "pyramid", "star")
WINDOWED = ("aya_vision", "cohere2_vision")  # the last token sees the image in the last of the four layers only
CASES = [
    (family, layout)
    for family in FAMILIES
    for layout in (*LAYOUTS, *(VIDEO if FAMILIES[family].video else ()))
    if not (layout == "video-batch" and FAMILIES[family].tokens == (3,))  # one placeholder for both: not at once
]


@cache
def inputs_of(family: str, layout: str) -> Inputs:
    return subject(family, "sdpa").make_inputs(**{**LAYOUTS, **VIDEO}[layout], seed=1)


@cache
@torch.no_grad()
def plain(family: str, attention: str, layout: str) -> Tensor:
    return subject(family, attention).dense(**inputs_of(family, layout)).logits


def refusal(family: str, policy: str) -> type[Exception] | None:
    """The error with which a plan is refused, for a family whose encoder does not offer what it needs."""
    parts = FAMILIES[family]
    offered = parts.encoder_layers if policy == "star" else parts.encoder_layers and parts.sites
    return NEEDS_ENCODER.get(policy) if not offered else None


PLANNED = [
    (family, layout, policy)
    for family, layout in CASES
    for policy in PLANS
    if layout not in VIDEO or policy in WITH_VIDEO
]
OFFERED = [
    (family, policy)
    for family in FAMILIES
    for policy in PLANS
    if refusal(family, policy) is None and not (policy == "fastv" and family in WINDOWED)
]


@pytest.mark.parametrize(("family", "layout", "policy"), PLANNED)
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_pruning_equals_masking(family: str, attention: str, layout: str, policy: str) -> None:
    model, items, steps = subject(family, attention), PLANS[policy], 8
    inputs, records = inputs_of(family, layout), RECORDS.get(policy, 1)
    if (error := refusal(family, policy)) is not None:
        with pytest.raises(error, match=r"encoder"):
            prune(model.model, *items)
        return
    if policy == "fastv" and family in WINDOWED:
        with pytest.raises(ScoresError, match="window"), prune(model.model, *items):
            model.model(**inputs)
        return
    if layout in VIDEO and policy == "star" and not model.family.encoder_video:
        with pytest.raises(NeedsError, match="encoder"), prune(model.model, *items):
            model.model(**inputs)
        return
    with prune(model.model, *items) as session:
        out = model.model(**inputs, use_cache=True)
        first = session.trace[:]
        generated = generate(model.model, inputs, steps)
    assert len(session.trace) == 2 * records
    check_trace(first, inputs, model)
    alive = Alive(first, inputs, model.family)
    with masked(model.dense, alive, model.family):
        dense = model.dense(**inputs, use_cache=True)
        expected_generated = generate(model.dense, inputs, steps)
    final = alive.final()
    assert_near(out.logits[final], dense.logits[final], "prefill", 2e-5)
    same_generation(generated, expected_generated, "generate", 2e-5)
    for layer, (held, whole) in enumerate(zip(out[CACHE].layers, dense[CACHE].layers, strict=True)):
        untouched = (alive.decoder(layer) == alive.real).all()  # then a window holds what it always does
        planned = whole.keys.shape[-2] if untouched else alive.planned(layer)
        assert held.keys.shape[-2] == planned, f"layer {layer} holds {held.keys.shape[-2]} keys, not {planned}"
    changed = (out.logits - plain(family, attention, layout))[:, -1].abs().max()
    assert changed > FAR, f"no power: pruned and dense differ by {changed:.1e} only"


@pytest.mark.parametrize(("family", "policy"), OFFERED)
def test_batch_equals_singles(family: str, policy: str) -> None:
    check_rows_alone(subject(family, "sdpa"), PLANS[policy], inputs_of(family, "ragged"), RECORDS.get(policy, 1))


EVERYTHING = Keep(ratio=1.0)
KEEP_ALL = (Stage("input", UniformGrid(), EVERYTHING), Stage("decoder.2", CrossAttention(), EVERYTHING))


@pytest.mark.parametrize(("family", "layout"), CASES)
@pytest.mark.parametrize("attention", ATTENTION)
def test_keeping_everything_changes_no_bit(family: str, attention: str, layout: str) -> None:
    encoder = FAMILIES[family].encoder_layers and FAMILIES[family].sites and layout not in VIDEO
    inside = (Stage("vision.0", Random(), EVERYTHING),) if encoder else ()
    check_identity(subject(family, attention), (*inside, *KEEP_ALL), inputs_of(family, layout))
