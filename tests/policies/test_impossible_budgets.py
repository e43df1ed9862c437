"""Budgets that a method cannot express are refused by name, with the nearest that it can."""

from __future__ import annotations

from typing import Any

import pytest
from policies_common import random_tokens

from prunekit import Keep
from prunekit.budget import match_average, tokens_per_layer
from prunekit.errors import BudgetError
from prunekit.plan import Plan, Shape
from prunekit.policies import (
    DART,
    VTW,
    BipartiteMatching,
    Diversity,
    DivPrune,
    FitPrune,
    FlowCut,
    HiRED,
    MustDrop,
    PruMerge,
    SparseVLM,
    ToMe,
)

SHAPE = Shape(32, 24, 22)


@pytest.mark.parametrize(
    ("retain", "version", "message"),
    [
        (100, "v1", r"SparseVLM\(retain=100\): published are 192, 128, 96, 64; the nearest is 96\. Give keep="),
        (0, "plus", r"SparseVLM\(retain=0\): .*the nearest is 64"),
        (576, "v1", r"SparseVLM\(retain=576\): .*the nearest is 192"),
    ],
)
def test_sparsevlm(retain: int, version: Any, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        SparseVLM(retain, version=version)
    assert SparseVLM(retain, keep=100, version=version).stages(32)[-1].count(576) is not None


@pytest.mark.parametrize(("retain", "near"), [(96, 128), (500, 192), (1, 64)])
def test_mustdrop(retain: int, near: int) -> None:
    with pytest.raises(BudgetError, match=rf"retain={retain}\): published are 192, 128, 64; the nearest is {near}\."):
        MustDrop(retain)
    with pytest.raises(BudgetError, match=r"Give of_all and of_one"):
        MustDrop(retain, of_all=0.1)  # one of two
    assert MustDrop(retain, of_all=0.1, of_one=0.2).stages(32)


def test_tome_beyond_halvings() -> None:
    """Three steps of merging leave an eighth."""
    plan = Plan.of([ToMe(keep=71)], Shape(4, 4, 2))
    with pytest.raises(
        BudgetError, match=r"3 steps of merging halve 576 tokens at most to 72; 71 tokens asks for 71\."
    ):
        plan.check(576)
    assert Plan.of([ToMe(keep=72)], Shape(4, 4, 2)).check(576)[-1] == 72
    with pytest.raises(BudgetError, match=r"at most to 72; ratio 0[.]1 asks for 57"):
        Plan.of([ToMe(keep=0.1)], Shape(4, 4, 2)).check(576)


def test_one_step_of_merging() -> None:
    policy = BipartiteMatching()
    tokens = random_tokens((17, 8), needs=policy.needs)
    with pytest.raises(BudgetError, match=r"halves \[17, 8\] tokens at most to \[9, 4\]; asked for are \[8, 4\]"):
        policy.select(tokens, Keep(ratio=0.5))
    assert policy.select(tokens, Keep(ratio=9 / 17)).counts == (9, 4)


@pytest.mark.parametrize(
    ("keep", "near"), [(0.25, 144), (1.0, 576), (Keep(ratio=0.5, power=0.5), 407), (Keep(tokens=64, per="image"), 64)]
)
def test_dart_released(keep: Any, near: int) -> None:
    with pytest.raises(BudgetError, match=rf"released'\): .* a number of tokens; .* the nearest is keep={near}\."):
        DART(keep, variant="released")
    assert DART(near, variant="released").stages(32)[0].count(576) == min(576, 4 + near // 8 * 8)


@pytest.mark.parametrize(
    ("keep", "near"),
    [(64, "0.02222"), (576, "0.2"), (Keep(ratio=0.5, per="image"), "0.5"), (Keep(tokens=3), "0.001042")],
)
def test_hired_of_tiles(keep: Any, near: str) -> None:
    with pytest.raises(BudgetError, match=rf"tiles=True\): .* a share of all patches; .* the nearest is keep={near}\."):
        HiRED(keep, tiles=True)
    assert HiRED(float(near), tiles=True).stages(32)[0].count(576) is None


@pytest.mark.parametrize(("keep", "near"), [(64, "0.1111"), (Keep(tokens=576), "1"), (Keep(ratio=0.3, times=2), "0.3")])
def test_divprune_released(keep: Any, near: str) -> None:
    with pytest.raises(BudgetError, match=rf"released'\): .* that of a share; .* the nearest is keep={near}\."):
        DivPrune(keep, variant="released").stages(32)
    (stage,) = DivPrune(Keep(ratio=0.3), variant="released").stages(32)
    assert stage.policy == Diversity(ratio=0.3)


def test_prumerge_plus_takes_no_budget() -> None:
    with pytest.raises(BudgetError, match=r"PruMerge\(plus=True, keep=64\): PruMerge\+ decides the number itself"):
        PruMerge(64, plus=True)
    for wrong in (0, 1.5, -0.5, True):
        for variant in ("paper", "released"):
            with pytest.raises(BudgetError):
                PruMerge(wrong, variant=variant).stages(32)  # type: ignore[arg-type]
    same = [PruMerge(keep, variant="released").stages(32) for keep in (0.3, Keep(ratio=0.3))]
    assert same[0] == same[1]
    assert same[0][0].count(10) == 4  # int(0.3 * 10) and the sum of the rest


def test_vtw_has_no_number_of_tokens() -> None:
    """It keeps all or none; its layer is its budget."""
    with pytest.raises(BudgetError, match=r"VTW cannot reach 9 .*the nearest is 18 \(layer=1\)"):
        match_average(VTW(), 9, visual=576, depth=32)  # all tokens in one layer are 18 on average
    assert tokens_per_layer(VTW(layer=10), 576, 32) == (576,) * 10 + (0,) * 22


def test_fitprune_deletes_what_there_is() -> None:
    with pytest.raises(BudgetError, match="together below the number of visual tokens"):
        FitPrune((300, 276), visual=576)


@pytest.mark.parametrize(
    ("method", "known"),
    [
        (MustDrop(), [False, False, False, False, False, False]),
        (FlowCut(64), [*[False] * 10, True]),
        (PruMerge(), [False]),
        (PruMerge(plus=True), [False]),
        (HiRED(0.2, tiles=True), [False]),
        (ToMe(64), [True] * 23),
        (SparseVLM(), [True] * 3),
    ],
    ids=lambda value: type(value).__name__,
)
def test_who_plans(method: Any, known: list[bool]) -> None:
    """Where the data decide how many stay, the plan says so."""
    assert [count is not None for count in Plan.of([method], SHAPE).check(576)] == known
