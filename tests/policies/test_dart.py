"""DART, that is `Duplication`, against plain loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from policies_common import meta, random_tokens, row

from prunekit import Keep, VisualTokens
from prunekit.errors import BudgetError, PolicyError, SiteError
from prunekit.needs import States
from prunekit.policies.dart import DART
from prunekit.policies.duplication import Duplication

POLICY: Any = Duplication()


def by_loops(tokens: VisualTokens, number: int, keep: int, *, images: int = 4, texts: int = 4) -> list[int]:
    assert tokens.keys is not None
    assert tokens.question is not None
    count = tokens.counts[number]
    visual, text = tokens.states[States("normed")][number], tokens.states[States("normed", of="text")][number]
    text_keys = tokens.states[States("key", of="text")]

    def largest(keys: torch.Tensor, among: list[int], many: int) -> list[int]:
        return sorted(among, key=lambda i: -float(keys[number, :, i].abs().sum()))[:many]

    own = largest(tokens.keys, list(range(count)), images)
    asking = [i for i, after in enumerate(tokens.question[number].tolist()) if after]
    pivots = [visual[i] for i in own] + [text[i] for i in largest(text_keys, asking, texts)]
    kept = own[:keep]
    share, more = divmod(keep - len(kept), len(pivots))
    for turn, pivot in enumerate(pivots):
        free = [i for i in range(count) if i not in kept]
        free.sort(key=lambda i: float(torch.cosine_similarity(visual[i], pivot, dim=0)))
        kept += free[: share + (turn < more)]
    return sorted(kept)


@pytest.mark.parametrize("counts", [(30,), (30, 17, 5), (40, 3, 1)])
@pytest.mark.parametrize("keep", [0.3, 0.55, 1.0])
@pytest.mark.parametrize("text", [4, 9])
def test_by_loops(counts: tuple[int, ...], keep: float, text: int) -> None:
    """Also with fewer tokens than pivots, and with two question tokens alone."""
    tokens = random_tokens(counts, needs=POLICY.needs, text=text)
    selection = POLICY.select(tokens, Keep(ratio=keep))
    for number, count in enumerate(counts):
        expected = by_loops(tokens, number, Keep(ratio=keep).count(count))
        assert [i for i in selection.kept[number].tolist() if i >= 0] == expected
        assert POLICY.select(row(tokens, number), Keep(ratio=keep)).kept[0].tolist() == expected


@pytest.mark.parametrize("keep", [1, 3, 5, 11])
def test_budgets_are_met_whatever_the_pivots(keep: int) -> None:
    """A budget below the number of pivots keeps the first of them."""
    tokens = random_tokens((30, 12), needs=POLICY.needs, text=9)
    selection = POLICY.select(tokens, Keep(tokens=keep))
    assert selection.counts == (keep, keep)
    assert [kept.tolist() for kept in selection.kept] == [by_loops(tokens, number, keep) for number in range(2)]


def test_without_text_pivots() -> None:
    tokens = random_tokens((20,), needs=POLICY.needs)
    kept = Duplication(images=2, texts=0).select(tokens, Keep(tokens=9)).kept[0].tolist()
    assert kept == by_loops(tokens, 0, 9, images=2, texts=0)


def test_a_row_without_tokens() -> None:
    selection = POLICY.select(random_tokens((16, 0), needs=POLICY.needs), Keep(ratio=0.5))
    assert selection.counts == (8, 0)
    assert (selection.kept[1] == -1).all()


@pytest.mark.parametrize(("counts", "text"), [((60,), 9), ((60, 40), 9), ((60, 0), 9), ((60, 3, 1), 4)])
def test_released(counts: tuple[int, ...], text: int) -> None:
    """Pivots take turns in the order of a set of their positions, and those that a row lacks take none."""
    (stage,) = DART(24, variant="released").stages(32)
    policy: Any = stage.policy
    tokens = random_tokens(counts, needs=policy.needs, text=text)
    assert tokens.positions is not None
    assert tokens.text_positions is not None
    selection, pivots = policy.select(tokens, None), policy.pivots(tokens)
    in_order = Duplication().pivots(tokens)
    assert stage.count(60) == 4 + 24
    assert selection.counts == tuple(min(28, count) for count in counts)
    places = torch.cat([tokens.positions, tokens.text_positions], 1)
    real = torch.cat([tokens.valid, tokens.question], 1)  # type: ignore[list-item]
    for number, count in enumerate(counts):
        by_norm, turns = (
            [places[number, i].item() for i in order[number].tolist() if real[number, i]]
            for order in (in_order, pivots)
        )
        assert turns == list(set(by_norm))
        if count:
            alone = policy.select(row(tokens, number), None).kept[0].tolist()
            assert [i for i in selection.kept[number].tolist() if i >= 0] == alone


def test_runs_without_values() -> None:
    assert POLICY.select(meta(random_tokens(needs=POLICY.needs)), Keep(tokens=9)).kept.shape == (2, 9)


def test_stages() -> None:
    (stage,) = DART().stages(32)
    assert (stage.site, stage.count(576)) == ("decoder.2", 128)
    (stage,) = DART(variant="released").stages(32)
    assert (stage.keep, stage.count(576), stage.count(100)) == (None, 132, 100)
    assert DART(Keep(tokens=64), variant="released").stages(32) == DART(64, variant="released").stages(32)


@pytest.mark.parametrize("keep", [0.3, Keep(ratio=0.3), Keep(tokens=64, per="image"), -8, True])
def test_the_released_budget_is_a_number(keep: Any) -> None:
    with pytest.raises(BudgetError):
        DART(keep, variant="released")


def test_bad_arguments() -> None:
    with pytest.raises(PolicyError, match=r"variant='relased'.*Did you mean 'released'"):
        DART(variant="relased")  # type: ignore[arg-type]
    with pytest.raises(PolicyError, match="images=0"):
        DART(images=0, texts=0, variant="released").stages(32)
    with pytest.raises(PolicyError, match="taken=-1"):
        Duplication(taken=-1)
    with pytest.raises(SiteError, match="is no site"):
        DART(layer=0).stages(32)
    with pytest.raises(BudgetError):
        DART(0)
