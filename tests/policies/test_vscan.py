"""VScan's first stage against plain loops; the second is PyramidDrop's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from policies_common import meta, random_tokens, row

from prunekit import Keep, VisualTokens
from prunekit.errors import BudgetError, PolicyError, SiteError
from prunekit.plan import Shape
from prunekit.policies.vscan import VScan
from prunekit.selection import merged

CLIP = Shape(32, 24, 22)
FIRST: Any = VScan().stages_of(CLIP)[0].policy


def by_loops(tokens: VisualTokens, number: int, keep: int) -> tuple[list[int], list[list[float]]]:
    """Kept tokens of a row, and their states."""
    count, shallow, deep = tokens.counts[number], *(tokens.attention[r][number] for r in FIRST.needs.attention)
    windows: dict[tuple[int, int], list[int]] = {}
    for i in range(count):
        width = None if tokens.grid is None else tokens.grid[1]
        where = (i // 36, 0) if width is None else (i // width // 6, i % width // 6)
        windows.setdefault(where, []).append(i)
    quota, local = keep // 2 // len(windows), list[int]()
    for members in windows.values():
        local += sorted(members, key=lambda i: -float(shallow[i]))[:quota]
    rest = sorted((i for i in range(count) if i not in local), key=lambda i: -float(deep[i]))
    kept = sorted(local + rest[: keep - len(local)])
    states, joined = tokens.hidden[number], {i: [i] for i in kept}
    for i in range(count):
        if i not in joined:
            near = [float(torch.cosine_similarity(states[i], states[k], dim=0)) for k in kept]
            joined[kept[near.index(max(near))]].append(i)
    return kept, [states[members].mean(0).tolist() for members in joined.values()]


@pytest.mark.parametrize(
    ("counts", "square", "keep"), [((144, 144), True, 0.25), ((80, 37, 1), False, 0.3), ((100,), True, 0.1)]
)
def test_by_loops(counts: tuple[int, ...], square: bool, keep: float) -> None:
    tokens = random_tokens(counts, needs=FIRST.needs, square=square)
    selection = FIRST.select(tokens, Keep(ratio=keep))
    states = merged(tokens.hidden, selection)
    for number in range(len(counts)):
        kept, means = by_loops(tokens, number, Keep(ratio=keep).count(counts[number]))
        assert [i for i in selection.kept[number].tolist() if i >= 0] == kept
        assert torch.allclose(states[number, : len(kept)], torch.tensor(means), atol=1e-5)
        alone = FIRST.select(row(tokens, number), Keep(ratio=keep))
        assert alone.kept[0].tolist() == kept
        own = merged(row(tokens, number).hidden, alone)[0]
        assert torch.allclose(own, states[number, : len(kept)], atol=1e-6)


def test_the_rest_of_the_division() -> None:
    """An odd half is not lost unless asked for: 100 tokens of 24 x 24, and 98 as released."""
    tokens = random_tokens((576, 576), dim=4, needs=FIRST.needs, square=True)
    first, _ = VScan(visual_keep=100, variant="released").stages_of(CLIP)
    assert first.keep is None
    assert first.policy.select(tokens, None).counts == (98, 98)
    assert FIRST.select(tokens, Keep(tokens=100)).counts == (100, 100)
    assert (FIRST.local(tokens, Keep(tokens=100)).sum(1) == 48).all()


def test_nothing_changes_where_everything_stays() -> None:
    tokens = random_tokens((20, 9), needs=FIRST.needs)
    selection = FIRST.select(tokens, Keep(ratio=1.0))
    assert torch.equal(selection.kept, torch.where(tokens.valid, tokens.source, -1))
    assert torch.equal(merged(tokens.hidden, selection)[tokens.valid], tokens.hidden[tokens.valid])


def test_a_row_without_tokens() -> None:
    selection = FIRST.select(random_tokens((40, 0), needs=FIRST.needs), Keep(ratio=0.5))
    assert selection.counts == (20, 0)
    assert (selection.kept[1] == -1).all()
    assert (selection.owner[1] == -1).all()


def test_runs_without_values() -> None:
    tokens = meta(random_tokens((144, 144), needs=FIRST.needs, square=True))
    selection = FIRST.select(tokens, Keep(tokens=7))
    assert (selection.kept.shape, merged(tokens.hidden, selection).shape) == ((2, 7), (2, 7, 8))


def test_stages() -> None:
    first, second = VScan().stages_of(CLIP)
    assert (first.site, second.site) == ("input", "decoder.16")
    assert (first.count(576), second.count(576)) == (96, 32)
    assert [rows.layer for rows in first.policy.needs.attention] == [5, None]
    assert second.policy.needs.attention[0].ahead
    assert VScan(Keep(ratio=0.1, times=2)).stages_of(CLIP)[0].count(100) == 60
    assert VScan(0.5).stages_of(CLIP)[0].count(100) == 100  # never more than all
    assert VScan(0.1, visual_keep=0.2).stages_of(CLIP)[0].count(100) == 20
    small = VScan(0.1).stages_of(Shape(2, 2, 0))
    assert [stage.site for stage in small] == ["input", "decoder.1"]
    assert small[0].policy.needs.attention[0].layer == 0


def test_bad_arguments() -> None:
    with pytest.raises(PolicyError, match=r"variant='relased'.*Did you mean 'released'"):
        VScan(variant="relased")  # type: ignore[arg-type]
    with pytest.raises(BudgetError):
        VScan(0)
    with pytest.raises(BudgetError):
        VScan(visual_keep=1.5)
    with pytest.raises(SiteError, match="vision encoder"):
        VScan().stages(32)
