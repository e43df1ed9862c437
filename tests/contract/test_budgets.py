"""8. `Keep` counts, and budgets that match methods with each other: properties over random cases."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit import Keep, Method, Stage
from prunekit.budget import average_tokens, match_average, tokens_per_layer
from prunekit.errors import BudgetError
from prunekit.policies import STAR, CrossAttention, FasterVLM, FastV, Random, SelfAttention

quick = settings(max_examples=150, deadline=None)
TOTALS = st.integers(1, 4000)


@quick
@given(st.floats(1e-6, 1.0), TOTALS)
def test_a_ratio_is_floored_at_least_one_and_never_above_all(ratio: float, total: int) -> None:
    count = Keep(ratio=ratio).count(total)
    exact = ratio * total
    assert 1 <= count <= total
    assert count == max(1, int(exact)) or (count == round(exact) and abs(count - exact) < 1e-6)


@quick
@given(TOTALS, st.data())
def test_a_share_of_whole_tokens_gives_them_back(total: int, data: st.DataObject) -> None:
    tokens = data.draw(st.integers(1, total))
    assert Keep(ratio=tokens / total).count(total) == tokens
    assert Keep(tokens=tokens).count(total) == tokens
    assert Keep(ratio=float(Fraction(tokens, total))).count(2 * total) == 2 * tokens


@quick
@given(st.floats(1e-6, 1.0), st.floats(1e-6, 1.0), TOTALS)
def test_more_is_never_less(one: float, other: float, total: int) -> None:
    low, high = sorted((one, other))
    assert Keep(ratio=low).count(total) <= Keep(ratio=high).count(total)
    assert Keep(ratio=low).count(total) <= Keep(ratio=low).count(total + 1)


@quick
@given(TOTALS, st.integers(1, 1000))
def test_more_tokens_than_there_are_are_refused(total: int, more: int) -> None:
    with pytest.raises(BudgetError, match=rf"{total + more}.* {total} visual tokens.*1 to {total}"):
        Keep(tokens=total + more).count(total)


def test_shorthands() -> None:
    assert Keep.of(64) == Keep(tokens=64)
    assert Keep.of(0.25) == Keep(ratio=0.25)
    assert Keep.of(1.0).count(10) == 10
    assert Keep.of(1).count(10) == 1
    assert Keep.of(Keep(tokens=3)) == Keep(tokens=3)
    assert Keep(ratio=0.5).count(0) == 0


METHODS: dict[str, Method | list[Stage]] = {
    "fastervlm": FasterVLM(),
    "fastv": FastV(),
    "star": STAR(),
    "star-late": STAR(layer=3),
    "stages": [
        Stage("input", SelfAttention(), Keep(ratio=0.5)),
        Stage("decoder.2", CrossAttention(), Keep(ratio=0.25)),
    ],
    "one-stage": [Stage("decoder.1", Random(), Keep(tokens=10))],
}


@pytest.mark.parametrize("items", METHODS.values(), ids=METHODS)
@settings(max_examples=40, deadline=None)
@given(visual=st.integers(16, 700), depth=st.integers(4, 40), share=st.floats(0.0, 1.2))
def test_matched_averages(items: Method | list[Stage], visual: int, depth: int, share: float) -> None:
    """As near as possible and not above; the next setting of the knob would be above; out of reach is an error."""
    average = share * visual
    try:
        stages = match_average(items, average, visual=visual, depth=depth)
    except BudgetError as error:
        stages, text = (), str(error)
    if not stages:
        low = average_tokens(_smallest(items), visual, depth)
        assert average < low or average > visual, f"{average} is in reach: {text}"
        assert "range" in text
        return
    levels = tokens_per_layer(stages, visual, depth)
    assert len(levels) == depth
    assert sum(levels) / depth == pytest.approx(average_tokens(stages, visual, depth))
    assert all(after <= before for before, after in zip((visual, *levels), levels, strict=False))
    assert levels[-1] >= 1
    assert sum(levels) / depth <= average * (1 + 1e-6)
    if isinstance(items, (FasterVLM, FastV)) and levels[-1] < visual:
        last = stages[-1]
        more = (*stages[:-1], Stage(last.site, last.policy, Keep(tokens=levels[-1] + 1)))
        assert average_tokens(more, visual, depth) > average


def _smallest(items: Method | list[Stage]) -> Method | list[Stage]:
    if isinstance(items, FasterVLM):
        return FasterVLM(keep=1)
    if isinstance(items, FastV):
        return FastV(keep=1)
    if isinstance(items, STAR):
        return STAR(keep=1, layer=items.layer)
    last = items[-1].keep
    assert last is not None
    if last.tokens is not None:
        return [Stage(items[0].site, items[0].policy, Keep(tokens=1))]
    return [replace(items[0], keep=Keep(tokens=2)), replace(items[1], keep=Keep(tokens=1))]


def test_the_two_level_plan_of_the_paper() -> None:
    """(K n1 + (T - K) n2) / T, the field's own formula."""
    stages = [Stage("input", Random(), Keep(tokens=288)), Stage("decoder.16", Random(), Keep(tokens=144))]
    assert tokens_per_layer(stages, 576, 32) == (288,) * 16 + (144,) * 16
    assert average_tokens(stages, 576, 32) == 216
    assert average_tokens(FastV(keep=0.5), 576, 32) == (2 * 576 + 30 * 288) / 32
    assert tokens_per_layer([Stage("vision.3", Random(), Keep(ratio=0.5))], 576, 4) == (288,) * 4
