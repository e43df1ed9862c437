"""The invariants can fail: sessions that are wrong on purpose do not pass them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
import torch
from catalogue import ATTENTION, Subject, subject
from invariants import LAYOUTS, check_cache, check_identity, check_mask_oracle, check_rows_alone, check_trace
from sabotage import (
    Sabotage,
    broken,
    cache_of,
    first_lost,
    hooked,
    lost_text,
    moved_positions,
    no_padding,
    noise,
    nothing,
    ran_twice,
    uncut_mask,
    wrong_trace,
)  # fmt: skip
from snapshots import differences, snapshot
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

import prunekit
from prunekit import Keep, ScoringPolicy, Stage, VisualTokens
from prunekit.errors import PrunekitError
from prunekit.policies import CrossAttention, SelfAttention

DECODER = (Stage("decoder.2", CrossAttention(), Keep(ratio=0.25)),)
INPUT = (Stage("input", SelfAttention(), Keep(ratio=0.25)),)


def inputs_of(model: Subject) -> dict[str, Tensor]:
    return model.make_inputs(**LAYOUTS["padded"])


@pytest.fixture(params=ATTENTION)
def model(request: pytest.FixtureRequest) -> Subject:
    return subject("llava", request.param)


def test_the_checks_pass_without_sabotage(model: Subject) -> None:
    for items in (DECODER, INPUT):
        for check in (check_mask_oracle, check_cache, check_rows_alone):
            check(model, items, inputs_of(model))


ORACLE: dict[str, tuple[Any, Sabotage]] = {
    "uncut decode mask": (DECODER, hooked(slice(2, None), uncut_mask)),
    "uncut decode mask, input": (INPUT, hooked(slice(0, None), uncut_mask)),
    "padding forgotten": (DECODER, hooked(slice(2, None), no_padding)),
    "text lost": (DECODER, hooked(slice(2, None), lost_text)),
    "positions moved": (DECODER, hooked(slice(2, None), moved_positions)),
    "another trace": (DECODER, wrong_trace),
}
CACHE: dict[str, tuple[Any, Sabotage]] = {
    "a layer run twice": (DECODER, cache_of(1, ran_twice)),
    "a pruned layer run twice": (DECODER, cache_of(3, ran_twice)),
    "a key lost": (DECODER, cache_of(3, first_lost)),
}


@pytest.mark.parametrize(("items", "sabotage"), ORACLE.values(), ids=ORACLE)
def test_the_mask_oracle_notices(
    model: Subject, items: Any, sabotage: Sabotage, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, sabotage)
    with pytest.raises((AssertionError, PrunekitError)):
        check_mask_oracle(model, items, inputs_of(model))


@pytest.mark.parametrize(("items", "sabotage"), CACHE.values(), ids=CACHE)
def test_silent_damage_to_a_cache_is_noticed(items: Any, sabotage: Sabotage, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row, no padding, SDPA: there is no mask whose width would not fit, and nothing but the oracle complains."""
    model = subject("llava", "sdpa")
    broken(monkeypatch, sabotage)
    with pytest.raises(AssertionError, match="differs by"):
        check_mask_oracle(model, items, model.make_inputs())


BOTH = CACHE | {name: ORACLE[name] for name in ("positions moved", "padding forgotten")}


@pytest.mark.parametrize(("items", "sabotage"), BOTH.values(), ids=BOTH)
def test_the_cache_check_notices(
    model: Subject, items: Any, sabotage: Sabotage, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, sabotage)
    with pytest.raises((AssertionError, PrunekitError)):
        check_cache(model, items, inputs_of(model))


@pytest.mark.parametrize("items", [DECODER, INPUT], ids=["decoder", "input"])
@pytest.mark.parametrize("check", [check_mask_oracle, check_cache])
def test_compact_positions_are_noticed(model: Subject, items: Any, check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, nothing, positions="compact")
    with pytest.raises(AssertionError, match="differs by"):
        check(model, items, inputs_of(model))


def test_the_smallest_noise_breaks_identity(model: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = (Stage("input", SelfAttention(), Keep(ratio=1.0)),)
    check_identity(model, everything, inputs_of(model))
    broken(monkeypatch, noise)
    with pytest.raises(AssertionError, match="logits changed"):
        check_identity(model, everything, inputs_of(model))
    with pytest.raises(AssertionError, match="logits changed"):
        check_identity(model, DECODER, inputs_of(model))


@dataclass(frozen=True)
class LooksAtOthers(ScoringPolicy):
    """A score that depends on the other samples of the batch."""

    def score(self, tokens: VisualTokens) -> Tensor:
        return (tokens.hidden - tokens.hidden.mean(0)).norm(dim=-1) + 1e-3 * tokens.source


@pytest.mark.parametrize("sabotage", [nothing, hooked(slice(2, None), no_padding)], ids=["policy", "padding"])
def test_batch_equals_singles_notices(model: Subject, sabotage: Sabotage, monkeypatch: pytest.MonkeyPatch) -> None:
    broken(monkeypatch, sabotage)
    items = DECODER if sabotage is not nothing else (Stage("input", LooksAtOthers(), Keep(ratio=0.25)),)
    with pytest.raises(AssertionError):
        check_rows_alone(model, items, inputs_of(model))


def test_the_trace_check_notices() -> None:
    model = subject("llava", "sdpa")
    inputs = model.make_inputs()
    with torch.no_grad(), prunekit.prune(model.model, *INPUT) as session:
        model.model(**inputs)
    (record,) = session.trace
    check_trace([record], inputs, model)
    wrong = {
        "ascending": record.kept.flip(1),
        "range": record.kept + 30,
        "right": torch.cat([record.kept, torch.tensor([[-1, 7]])], dim=1),
    }
    for kept in wrong.values():
        with pytest.raises(AssertionError):
            check_trace([replace(record, kept=kept)], inputs, model)
    more = replace(record, kept=torch.arange(36)[None])
    with pytest.raises(AssertionError, match="brought back"):
        check_trace([record, more], inputs, model)


def _set(target: Any, name: str, value: Any) -> Callable[[], None]:
    before = getattr(target, name, None)
    added = isinstance(target, torch.nn.Module)
    setattr(target, name, value)
    return partial(delattr, target, name) if added else partial(setattr, target, name, before)


def _enter(name: str) -> Callable[[], None]:
    ALL_ATTENTION_FUNCTIONS[name] = ALL_ATTENTION_FUNCTIONS["sdpa"]
    return partial(ALL_ATTENTION_FUNCTIONS.__delitem__, name)


LEFT: dict[str, Callable[[Any], Callable[[], None]]] = {
    "a hook": lambda m: m.model.language_model.layers[1].register_forward_pre_hook(lambda *_: None).remove,
    "a hook of the tower": lambda m: m.model.vision_tower.register_forward_hook(lambda *_: None).remove,
    "an attribute": lambda m: _set(m.model.language_model, "kept", 3),
    "another forward": lambda m: _set(m.model.language_model.layers[0], "forward", lambda *_: None),
    "a configuration value": lambda m: _set(m.config.text_config, "_attn_implementation", "eager"),
    "a generation setting": lambda m: _set(m.generation_config, "num_beams", 4),
    "a registry entry": lambda m: _enter("sdpa"),
    "a new registry entry": lambda m: _enter("prunekit"),
}


@pytest.mark.parametrize("leave", LEFT.values(), ids=LEFT)
def test_the_snapshot_notices(leave: Callable[[Any], Callable[[], None]]) -> None:
    model = subject("llava", "sdpa").model
    before = snapshot(model)
    undo = leave(model)
    found = differences(before, snapshot(model))
    undo()
    assert found
    assert differences(before, snapshot(model)) == []
