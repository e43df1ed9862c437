"""PyramidDrop: where its stages are, what they leave, and how they rank."""

from __future__ import annotations

import pytest
import torch
from policies_common import meta, random_tokens, row

from prunekit import Keep
from prunekit.errors import BudgetError, NeedsError, SiteError
from prunekit.policies.cross_attention import CrossAttention
from prunekit.policies.pyramiddrop import PyramidDrop

POLICY = PyramidDrop().stages(32)[0].policy


@pytest.mark.parametrize(
    ("depth", "layers"), {32: (8, 16, 24), 40: (10, 20, 30), 28: (7, 14, 21), 5: (1, 2, 3), 4: (1, 2, 3)}.items()
)
def test_stages_are_at_the_quarters(depth: int, layers: tuple[int, ...]) -> None:
    assert [stage.site for stage in PyramidDrop().stages(depth)] == [f"decoder.{layer}" for layer in layers]


@pytest.mark.parametrize("total", [1, 7, 575, 576, 577, 2880, 2881])
def test_published_shares(total: int) -> None:
    counts = [stage.count(total) for stage in PyramidDrop().stages(32)]
    assert counts == [max(1, int(total * ratio)) for ratio in (0.5, 0.25, 0.125)]


@pytest.mark.parametrize("keep", [1, 72, 575, 0.01, 0.3, Keep(ratio=0.2, times=2)])
@pytest.mark.parametrize("total", [575, 576])
def test_a_stage_never_asks_for_more_than_is_left(keep: int | float | Keep, total: int) -> None:
    counts = [stage.count(total) or 0 for stage in PyramidDrop(keep).stages(32)]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] == Keep.of(keep).count(total)


def test_everything_stays_at_one() -> None:
    assert [stage.count(577) for stage in PyramidDrop(1.0).stages(32)] == [577] * 3


def test_ranks_by_the_layer_to_come() -> None:
    (rows,) = POLICY.needs.attention
    assert (rows.queries, rows.reduce, rows.layer, rows.ahead) == ("last", "mean", None, True)
    tokens = random_tokens((9, 4, 1), needs=POLICY.needs)
    selection = POLICY.select(tokens, Keep(ratio=0.5))
    for number, count in enumerate(tokens.counts):
        scores = tokens.attention[rows][number].tolist()
        best = sorted(sorted(range(count), key=lambda i: -scores[i])[: max(1, count // 2)])
        assert [i for i in selection.kept[number].tolist() if i >= 0] == best
        alone = POLICY.select(row(tokens, number), Keep(ratio=0.5))
        assert alone.kept[0].tolist() == best


def test_runs_without_values() -> None:
    assert POLICY.select(meta(random_tokens(needs=POLICY.needs)), Keep(tokens=3)).kept.shape == (2, 3)


@pytest.mark.parametrize(("drops", "depth"), [(3, 3), (0, 32), (4, 4)])
def test_stages_without_room(drops: int, depth: int) -> None:
    with pytest.raises(SiteError, match=rf"drops={drops}.*1 to {depth - 1}"):
        PyramidDrop(drops=drops).stages(depth)


@pytest.mark.parametrize("keep", [0, -1, 0.0, 1.5, True])
def test_no_budget(keep: int | float) -> None:
    with pytest.raises(BudgetError):
        PyramidDrop(keep).stages(32)


def test_a_layer_ahead_has_no_number() -> None:
    with pytest.raises(NeedsError, match="give no layer"):
        _ = CrossAttention("last", layer=3, ahead=True).needs


def test_ties_go_to_the_first() -> None:
    (rows,) = POLICY.needs.attention
    scores = torch.tensor([[0.1, 0.2, 0.2, 0.2]])
    tokens = random_tokens((4,), needs=POLICY.needs)
    tokens.attention[rows] = tokens.attention["last"] = scores  # type: ignore[index]
    assert POLICY.select(tokens, Keep(tokens=2)).kept.tolist() == [[1, 2]]
