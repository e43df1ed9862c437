"""HiRED's tile budgets against plain loops: several images a row, separators, and padding that the model cut off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from policies_common import meta, random_tokens, row

from prunekit import Keep, VisualTokens
from prunekit.errors import BudgetError
from prunekit.patches import Image
from prunekit.policies.hired import HiRED

SIZE = 12  # patches of a tile

Layout = tuple[tuple[list[int], ...], ...]


def tiled(rows: Layout) -> VisualTokens:
    """Rows of images of tiles, given as how many of a tile's patches are cut off; tiles end with a separator."""
    patches, images = [], []
    for row_images in rows:
        found, sizes, tile = [], [], 0
        for cuts in row_images:
            before = len(found)
            for cut in cuts:
                found += [(tile, place) for place in range(cut, SIZE)] + [(-1, -1)]
                tile += 1
            sizes.append(Image(len(found) - before))
        patches.append(found)
        images.append(tuple(sizes))
    counts = tuple(map(len, patches))
    table = torch.full((len(rows), max(counts), 2), -1)
    for number, found in enumerate(patches):
        if found:
            table[number, : len(found)] = torch.tensor(found)
    policy = HiRED(0.3, tiles=True).stages(32)[0].policy
    return replace(
        random_tokens(counts, needs=policy.needs), patches=table, images=tuple(images), grid=None, per_image=None
    )


def best(scores: dict[int, float], count: int) -> list[int]:
    return sorted(scores, key=lambda i: (-scores[i], i))[:count]


def by_loops(tokens: VisualTokens, number: int, rows: Layout, rate: float, alpha: float) -> list[int]:
    assert tokens.patches is not None
    policy: Any = HiRED(rate, tiles=True).stages(32)[0].policy
    early, late = (tokens.attention[each][number].tolist() for each in policy.needs.attention)
    where = tokens.patches[number].tolist()
    kept, first = list[int](), 0
    for cuts in rows[number]:
        many = len(cuts)
        members = [[i for i, (tile, _) in enumerate(where) if tile == first + t] for t in range(many)]
        total = int(many * SIZE * rate)
        if many == 1:
            budgets = [min(total, SIZE)]
        else:
            main, marks = int(total * alpha), int(SIZE * (1 - alpha))
            marked = [where[i][1] for i in best({i: early[i] for i in members[0]}, marks)]
            length = SIZE / (many - 1)
            votes = [sum(t * length <= place < (t + 1) * length for place in marked) for t in range(many - 1)]
            budgets = [min(main, SIZE)] + [min(SIZE, int(vote / max(1, marks) * (total - main))) for vote in votes]
        for group, budget in zip(members, budgets, strict=True):
            kept += best({i: late[i] for i in group}, budget)
        first += many
    return sorted(kept)


LAYOUTS: dict[str, Layout] = {
    "one image": (([0, 0, 0],),),
    "two images": (([0, 0, 0], [0, 0, 0, 0, 0]),),
    "ragged": (([0, 0, 0, 0, 0],), ([0, 0, 0], [0, 0, 0]), ([0, 0, 0],)),
    "cut": (([0, 4, 9],), ([0, 3, 3, 0, 0], [0, 6, 6])),
    "one tile": (([0],), ([0, 0, 0],)),
    "no image": (([0, 0, 0],), ()),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize(("rate", "alpha"), [(0.3, 0.5), (0.75, 0.25), (1.0, 0.0), (0.2, 1.0)])
def test_by_loops(name: str, rate: float, alpha: float) -> None:
    rows = LAYOUTS[name]
    tokens = tiled(rows)
    (stage,) = HiRED(rate, tiles=True, alpha=alpha).stages(32)
    selection = stage.policy.select(tokens, None)
    for number, count in enumerate(tokens.counts):
        kept = selection.kept[number].tolist()
        expected = by_loops(tokens, number, rows, rate, alpha)
        assert kept == expected + [-1] * (len(kept) - len(expected))
        if count:
            alone = stage.policy.select(row(tokens, number), None).kept[0].tolist()
            assert [i for i in alone if i >= 0] == expected


def test_counts_are_left_to_the_core() -> None:
    """Nothing is read back: the policy runs where there are no values."""
    (stage,) = HiRED(0.3, tiles=True).stages(32)
    tokens = tiled(LAYOUTS["ragged"])
    selection = stage.policy.select(meta(tokens), None)
    assert selection.counts is None
    assert selection.kept.shape == tokens.valid.shape
    assert stage.count(100) is None


def test_single_tiles() -> None:
    (stage,) = HiRED().stages(32)
    tokens = random_tokens((10, 5, 1), needs=stage.policy.needs)
    selection = stage.policy.select(tokens, stage.keep)
    assert selection.counts == (2, 1, 1)
    for number, count in enumerate(tokens.counts):
        scores = dict(enumerate(tokens.attention["cls"][number, :count].tolist()))
        kept = [i for i in selection.kept[number].tolist() if i >= 0]
        assert kept == sorted(best(scores, selection.counts[number]))
    assert [stage.count(n) for n in (576, 577, 1)] == [115, 115, 1]


def test_a_share_is_a_share() -> None:
    assert HiRED(Keep(ratio=0.3), tiles=True).stages(32) == HiRED(0.3, tiles=True).stages(32)


@pytest.mark.parametrize("keep", [64, 0.0, 1.5, -0.1, Keep(tokens=3), Keep(ratio=0.5, per="image"), True])
def test_no_share(keep: Any) -> None:
    with pytest.raises(BudgetError):
        HiRED(keep, tiles=True)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_no_share_of_the_thumbnail(alpha: float) -> None:
    with pytest.raises(BudgetError, match="alpha"):
        HiRED(alpha=alpha)
