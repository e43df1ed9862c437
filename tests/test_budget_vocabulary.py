"""One vocabulary of budgets: every method is brought to each measure, to the token, or refused with a reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from budget_subjects import NAMES, llava, subject_of
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit import Budget, Keep, Method, Stage, policies
from prunekit.budget import CostModel, LatencyTable, Solved, achieved, average_tokens, match_average
from prunekit.errors import BudgetError
from prunekit.plan import Plan, Shape

VISUAL = 576
SHARES = (0.1, 0.25, 0.5)
TEXTS = (20, 95)


REFUSED = {
    "FitPrune": "no setting that a budget could turn",
    "MustDrop": "decides the number of tokens by itself; it cannot be matched",
}


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_meets_a_share_of_flops(name: str, share: float, text: int) -> None:
    """As near as its knob goes and not above: with one more it would be above. Else the message has the range."""
    items, model = subject_of(name), llava()
    found = attempt(Budget(flops=share), items, text)
    if name in REFUSED:
        assert REFUSED[name] in str(found)
    elif isinstance(found, str):
        assert share < low_end(found), found
        assert text == 95 or name in ("PyramidDrop", "SparseVLM"), found
    else:
        assert found.achieved["flops"] <= share * (1 + 1e-9)
        more = next_setting(items, found.setting)
        if more is not None:
            assert model.flops(Plan.of([more], model.shape).stages, VISUAL, text) > share
        assert found.achieved == achieved(found.stages, model, visual=VISUAL, text=text)


def attempt(budget: Budget, items: Method | Stage, text: int) -> Solved | str:
    """The solution, or what the refusal says."""
    try:
        return budget.solve(items, llava(), visual=VISUAL, text=text)
    except BudgetError as error:
        return str(error)


def low_end(refusal: str) -> float:
    """Of the range that a refusal gives, which the nearest setting reaches."""
    found = re.search(r"the nearest is ([\d.e-]+) \(.+its range is ([\d.e-]+) to", refusal)
    assert found, refusal
    assert found[1] == found[2]
    return float(found[2])


def next_setting(items: Method | Stage, setting: dict[str, Any]) -> Any:
    """One more than the solution, or None for several stages that are scaled together."""
    ((name, value),) = setting.items()
    if isinstance(items, Stage):
        return replace(items, keep=Keep(tokens=value + 1))
    return None if name == "last stage" else replace(items, **{name: value + 1})  # type: ignore[type-var]


def test_a_share_of_flops_by_hand() -> None:
    """FastV on LLaVA-1.5-7B: two dense layers, 30 pruned ones, and one row of attention."""
    n, d, m = 576 + 95, 4096, 11008

    def layer(tokens: int) -> int:
        return 4 * tokens * d * d + 2 * tokens**2 * d + 3 * tokens * d * m

    solved = Budget(flops=0.3).solve(policies.FastV(), llava(), visual=576, text=95)
    keep = solved.setting["keep"]
    assert isinstance(keep, int)
    for tokens, within in ((keep, True), (keep + 1, False)):
        share = (2 * layer(n) + 30 * layer(tokens + 95) + n * d) / (32 * layer(n))
        assert (share <= 0.3) == within
        if within:
            assert solved.achieved["flops"] == pytest.approx(share, rel=1e-12)


def test_every_measure_by_hand() -> None:
    """Half of the tokens from layer 16 on; the KV cache of LLaVA-1.5-7B has 512 KiB a token in 16 bits."""
    stages = [Stage("decoder.16", policies.Random(), Keep(ratio=0.5))]
    times = LatencyTable({100: 1.0, 700: 7.0})
    found = achieved(stages, llava(), visual=576, text=95, latency=times)
    assert found["tokens"] == 288
    assert found["ratio"] == 0.5
    assert found["average"] == 432
    assert found["average_share"] == 0.75
    assert found["kv_bytes"] == 16 * ((576 + 95) + (288 + 95)) * 2 * 4096 * 2
    assert found["kv"] == pytest.approx((671 + 383) / (2 * 671))
    assert found["latency"] == pytest.approx((671 + 383) / (2 * 671))
    assert achieved((), llava(), visual=576, text=95)["flops"] == 1


@pytest.mark.parametrize(
    ("budget", "keep"),
    [
        (Budget(tokens=64), 64),
        (Budget(ratio=0.1), 57),
        (Budget(average=0.25), 144),
        (Budget(average=100), 100),
        (Budget(kv=0.5), 240),  # (240 + 95) / 671 <= 0.5
        (Budget(kv=32 * 4096 * 4 * (95 + 99)), 99),
        (Budget(latency=0.5), 240),
    ],
    ids=str,
)
def test_every_budget_on_a_method_before_the_language_model(budget: Budget, keep: int) -> None:
    times = LatencyTable({1: 1.0, 1000: 1000.0})
    solved = budget.solve(policies.FasterVLM(), llava(), visual=576, text=95, latency=times)
    assert solved.setting == {"keep": keep}
    assert Budget.parse(str(budget)) == budget


def test_what_is_turned() -> None:
    late = Budget(flops=0.5).solve(policies.VTW(), llava(), visual=576, text=20)
    assert late.setting == {"layer": 15}
    assert late.achieved["tokens"] == 0
    stages = [Stage("input", policies.Random(), Keep(ratio=0.5)), Stage("decoder.8", policies.Norm(), Keep(ratio=0.25))]
    scaled = Budget(average=0.2).solve(stages, 32, visual=576)
    first, last = (stage.count(576) for stage in scaled.stages)
    assert first is not None
    assert last is not None
    assert abs(first - 2 * last) <= 1
    assert scaled.setting == {"last stage": last}
    assert scaled.stages == match_average(stages, 0.2 * 576, visual=576, depth=32)
    alone = Budget(tokens=9).solve(policies.Norm(), 4, visual=36)
    assert [(stage.site, stage.count(36)) for stage in alone.stages] == [("input", 9)]
    adaptive = Budget(tokens=64).solve(policies.PruMerge(), Shape(32, 24, 22), visual=576)
    assert adaptive.setting == {"keep": 64}
    released = Budget(tokens=64).solve(policies.DivPrune(variant="released"), 32, visual=576)
    assert released.achieved["tokens"] <= 64
    assert isinstance(released.setting["keep"], float)


@dataclass(frozen=True)
class Later(Method):
    """A method of one's own whose knob is not called `keep`: it prunes to a tenth before a layer."""

    layer: int = 1

    knob = "layer"

    def stages(self, depth: int) -> tuple[Stage, ...]:
        return (Stage(f"decoder.{self.layer}", policies.Norm(), Keep(ratio=0.1)),)


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.05, 1.0), visual=st.integers(10, 700), depth=st.integers(3, 40))
def test_a_knob_of_ones_own(share: float, visual: int, depth: int) -> None:
    """Layer k costs k dense layers and depth - k short ones."""
    short = int(0.1 * visual * (1 + 1e-12))
    averages = {k: (k * visual + (depth - k) * short) / depth for k in range(1, depth)}
    within = [k for k, average in averages.items() if average <= share * visual * (1 + 1e-9)]
    if not within:
        with pytest.raises(BudgetError, match=r"Later cannot reach .*\(layer=1\)"):
            Budget(average=share).solve(Later(), depth, visual=visual)
        return
    assert Budget(average=share).solve(Later(), depth, visual=visual).setting == {"layer": max(within)}


def test_a_method_that_takes_only_some_settings() -> None:
    """Stage 1 of this STAR keeps 100: more than that cannot stay after stage 2."""
    method = policies.STAR(visual_keep=100)
    solved = Budget(average=0.9).solve(method, 32, visual=576)
    assert solved.setting == {"keep": 100}
    assert average_tokens(solved.stages, 576, 32) == 100
    tome = Budget(tokens=40).solve(policies.ToMe(), Shape(32, 2, 1), visual=144)
    assert tome.setting == {"keep": 40}
    with pytest.raises(BudgetError, match=r"cannot reach 20 .*the nearest is 36 \(keep=36\).*its range is 36 to 144"):
        Budget(tokens=20).solve(policies.ToMe(), Shape(32, 2, 1), visual=144)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "takes exactly one of tokens, ratio, average, flops, kv, latency; given none"),
    "two": ({"flops": 0.5, "kv": 0.5}, "exactly one of .*; given flops, kv"),
    "zero": ({"flops": 0}, r"Budget\(flops=0\): 0 is no budget; give a share"),
    "negative": ({"average": -3}, "-3 is no budget"),
    "not a number": ({"kv": float("nan")}, "nan is no budget"),
    "a flag": ({"tokens": True}, "True is no budget"),
    "text": ({"flops": "half"}, "half is no budget"),
    "above dense": ({"flops": 1.2}, "1.2 is above 1; a share is at most 1.0"),
    "a share of time above 1": ({"latency": 2}, "2 is above 1"),
    "an average with a point": ({"average": 36.5}, "36.5 is above 1; .*a number is written without a point"),
    "half a token": ({"tokens": 0.5}, "give a whole number; a share is written ratio=0.5"),
}


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_budget(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget(**fields)


@pytest.mark.parametrize("text", ["flop=0.3", "flops", "flops=x", "0.3", "kv=0"])
def test_texts_that_are_no_budget(text: str) -> None:
    with pytest.raises(BudgetError, match="is no budget"):
        Budget.parse(text)
    with pytest.raises(BudgetError, match=r"Did you mean 'flops'\?"):
        Budget.parse("flop=0.3")


OUT: dict[str, tuple[Budget, Any, Any, str]] = {
    "tokens above all": (Budget(tokens=600), policies.FastV(), 32, "600 visual tokens are asked for, .* has only 576"),
    "average above all": (Budget(average=600), policies.FastV(), 32, "600 visual tokens per layer are asked for"),
    "out of reach": (
        Budget(average=0.05),
        policies.FastV(),
        32,
        r"FastV cannot reach 28.8 visual tokens per decoder layer; the nearest is 36.9375 \(keep=1\); on 32 layers and"
        r" 576 tokens its range is 36.9375 to 576.",
    ),
    "tokens of VTW": (Budget(tokens=64), policies.VTW(), 32, r"VTW cannot reach 64 .*; the nearest is 0 \(layer=1\)"),
    "the data decide, by tiles": (
        Budget(average=0.25),
        policies.HiRED(0.3, tiles=True),
        32,
        "HiRED as configured lets the data decide how many tokens stay at 'input'",
    ),
    "FLOPs without a model": (Budget(flops=0.5), policies.FastV(), 32, "FLOPs need a cost model"),
    "bytes without a model": (Budget(kv=1000), policies.FastV(), 32, "the KV cache needs a cost model"),
    "time without times": (Budget(latency=0.5), policies.FastV(), 32, "a time needs measurements"),
}


@pytest.mark.parametrize(("budget", "items", "model", "message"), OUT.values(), ids=OUT)
def test_what_cannot_be_reached(budget: Budget, items: Any, model: Any, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        budget.solve(items, model, visual=VISUAL)


def test_more_bytes_than_the_dense_cache_has() -> None:
    with pytest.raises(BudgetError, match=r"the dense cache has only 302,514,176 bytes for 576 visual and 1 other"):
        Budget(kv=10**10).solve(policies.FastV(), llava(), visual=576, text=1)


def test_times() -> None:
    table = LatencyTable({10: 1.0, 20: 3.0, 40: 5.0})
    assert table([10, 15, 30]) == 1 + 2 + 4
    with pytest.raises(BudgetError, match="a layer of 41 tokens was not measured; measured are 10 to 40"):
        table([41])
    for wrong in ({10: 1.0}, {10: 1.0, 20: 0.0}):
        with pytest.raises(BudgetError, match="at least two lengths"):
            LatencyTable(wrong)

    def squared(lengths: Sequence[int]) -> float:
        return float(sum(n * n for n in lengths))

    solved = Budget(latency=0.25).solve(policies.FasterVLM(), 32, visual=100, latency=squared)
    assert solved.setting == {"keep": 50}


def test_an_unknown_encoder_is_not_charged_as_nothing() -> None:
    model = CostModel(Shape(32, 24, 22), llava().decoder)
    with pytest.raises(BudgetError, match="SelfAttention reads attention of the vision encoder, whose cost is not"):
        Budget(flops=0.5).solve(policies.FasterVLM(), model, visual=576)
    assert Budget(flops=0.5).solve(policies.FastV(), model, visual=576).achieved["flops"] <= 0.5
