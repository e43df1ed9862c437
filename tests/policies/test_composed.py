"""Policies made of others, against plain loops; scores hold ties, since ranks have to say what becomes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from policies_common import best, left, positions, random_tokens

from prunekit import Keep, Needs, Stage, VisualTokens
from prunekit.errors import BudgetError, PolicyError, UnsupportedInputError
from prunekit.patches import Image
from prunekit.plan import Shape
from prunekit.policies import (
    DivPrune,
    FastV,
    Invert,
    KeyNorm,
    Mix,
    Norm,
    Oracle,
    PerImage,
    Protect,
    Sequential,
    SpatialQuota,
    UniformGrid,
    Union,
)

A, B = Oracle("a"), Oracle("b")
GRID = (5, 7)
COUNTS = (70, 35, 0)
RATIOS = [0.1, 0.37, 0.8]


def scored(counts: tuple[int, ...] = COUNTS, grid: tuple[int, int] | None = GRID) -> VisualTokens:
    """Scores of a few steps, so that many are equal."""
    tokens = random_tokens(counts, needs=Needs(side=("a", "b")), grid=grid)
    return replace(tokens, side={name: (2 * value).round() for name, value in tokens.side.items()})


def scores(tokens: VisualTokens, row: int) -> tuple[list[float], list[float]]:
    count = tokens.counts[row]
    return tokens.side["a"][row, :count].tolist(), tokens.side["b"][row, :count].tolist()


def ranked(values: list[float]) -> list[float]:
    """From 0 to 1; equal ones share the mean of their places."""
    order = sorted(values)
    places = {value: [i for i, other in enumerate(order) if other == value] for value in values}
    return [sum(places[value]) / len(places[value]) / max(1, len(values) - 1) for value in values]


def scaled(values: list[float]) -> list[float]:
    low, high = min(values), max(values)
    return [(value - low) / (high - low) for value in values]


def centred(values: list[float]) -> list[float]:
    mean = sum(values) / len(values)
    spread = (sum((value - mean) ** 2 for value in values) / len(values)) ** 0.5
    return [(value - mean) / spread for value in values]


@pytest.mark.parametrize(("how", "brought"), [("rank", ranked), ("minmax", scaled), ("zscore", centred)])
@pytest.mark.parametrize("weights", [None, [2.0, -0.7]])
def test_mix(how: Any, brought: Any, weights: list[float] | None) -> None:
    tokens, policy = scored(), Mix([A, B], weights, how)
    found, (wa, wb) = policy.score(tokens), weights or (1.0, 1.0)
    for row, count in enumerate(COUNTS[:2]):
        first, second = map(brought, scores(tokens, row))
        expected = [wa * x + wb * y for x, y in zip(first, second, strict=True)]
        assert found[row, :count].tolist() == pytest.approx(expected, abs=1e-5)
    assert policy.select(tokens, Keep(ratio=0.3)).counts == (21, 10, 0)


def test_equal_ranks_keep_their_order() -> None:
    tokens = scored()
    for policy in (Mix([A]), Mix([A, A]), Mix([A, Invert(Invert(A))], [1.0, 3.0])):
        for ratio in RATIOS:
            alone, mixed = (each.select(tokens, Keep(ratio=ratio)).kept for each in (A, policy))
            assert torch.equal(alone, mixed)


@pytest.mark.parametrize("ratio", RATIOS)
def test_invert(ratio: float) -> None:
    tokens = scored()
    selection = Invert(A).select(tokens, Keep(ratio=ratio))
    for row, count in enumerate(COUNTS):
        values, keep = scores(tokens, row)[0], Keep(ratio=ratio).count(count)
        assert positions(selection, row) == best([-value for value in values], keep)


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shares", [None, [1.0, 3.0], [0.0, 1.0], [0.25, 0.75]])
def test_union(ratio: float, shares: list[float] | None) -> None:
    tokens = scored()
    selection = Union([A, B], shares).select(tokens, Keep(ratio=ratio))
    share = 0.5 if shares is None else shares[0] / sum(shares)
    for row, count in enumerate(COUNTS):
        first, second = scores(tokens, row)
        keep = Keep(ratio=ratio).count(count)
        chosen = best(first, int(keep * share))
        rest = [i for i in range(count) if i not in chosen]
        assert positions(selection, row) == sorted(chosen + best(second, keep - len(chosen), rest))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (3, 1), (5, 7)])
def test_spatial_quota(ratio: float, rows: int, columns: int) -> None:
    tokens = scored()
    selection = SpatialQuota(A, rows, columns).select(tokens, Keep(ratio=ratio))
    for row, count in enumerate(COUNTS):
        values, keep = scores(tokens, row)[0], Keep(ratio=ratio).count(count)
        windows: dict[tuple[int, int, int], list[int]] = {}
        for i in range(count):
            line, column = i % 35 // 7, i % 7
            windows.setdefault((i // 35, line * rows // 5, column * columns // 7), []).append(i)
        quota = keep // len(windows) if windows else 0
        chosen = [i for members in windows.values() for i in best(values, quota, members)]
        rest = [i for i in range(count) if i not in chosen]
        assert positions(selection, row) == sorted(chosen + best(values, keep - len(chosen), rest))


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("box", [(0.25, 0.25, 0.75, 0.75), (0.0, 0.0, 0.2, 1.0)])
def test_protect(ratio: float, box: tuple[float, float, float, float]) -> None:
    tokens = scored()
    selection = Protect(A, box).select(tokens, Keep(ratio=ratio))
    top, start, bottom, end = box
    for row, count in enumerate(COUNTS):
        values, keep = scores(tokens, row)[0], Keep(ratio=ratio).count(count)
        middles = [((i % 35 // 7 + 0.5) / 5, (i % 7 + 0.5) / 7) for i in range(count)]
        inside = [i for i, (y, x) in enumerate(middles) if top <= y < bottom and start <= x < end]
        chosen = best(values, keep, inside)
        rest = [i for i in range(count) if i not in inside]
        assert positions(selection, row) == sorted(chosen + best(values, keep - len(chosen), rest))


@pytest.mark.parametrize("ratio", RATIOS)
def test_per_image(ratio: float) -> None:
    """Images of 20, 5 and 10 tokens share a budget by their sizes."""
    sizes = ((20, 5, 10), (8, 9), ())
    tokens = scored(tuple(map(sum, sizes)), grid=None)
    images = tuple(tuple(map(Image, row)) for row in sizes)
    tokens = replace(tokens, images=images, alive=sizes, per_image=None)
    selection = PerImage(A).select(tokens, Keep(ratio=ratio))
    for row, images_of_row in enumerate(sizes):
        values, total, start = scores(tokens, row)[0], sum(images_of_row), 0
        keep, expected = Keep(ratio=ratio).count(total), list[int]()
        for size in images_of_row:
            share = keep * (start + size) // total - keep * start // total
            expected += best(values, share, range(start, start + size))
            start += size
        assert positions(selection, row) == expected
        assert len(expected) == keep


def test_needs_and_sites_are_those_of_all() -> None:
    mix = Mix([Norm(), KeyNorm(layer=3), A])
    assert mix.needs.keys == KeyNorm(layer=3).needs.keys
    assert mix.needs.side == ("a",)
    assert mix.sites == ("input", "decoder")
    with pytest.raises(PolicyError, match="different layers"):
        _ = Union([KeyNorm(layer=3), KeyNorm(layer=4)]).needs
    for policy in (Invert(A), Protect(A), SpatialQuota(A), PerImage(A)):
        assert policy.needs == A.needs
        assert policy.sites == A.sites


def test_sequential_joins_stages() -> None:
    first, last = DivPrune(0.5), FastV(0.25, layer=3)
    own = Stage("decoder.1", UniformGrid(), Keep(ratio=0.4))
    joined = Sequential([first, own, last]).stages_of(Shape(8))
    assert joined == (*first.stages(8), own, *last.stages(8))
    with pytest.raises(PolicyError, match=r"UniformGrid.*is neither"):
        Sequential([UniformGrid()])  # type: ignore[list-item]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Invert(UniformGrid()),  # type: ignore[arg-type]
        lambda: Mix([A, UniformGrid()]),  # type: ignore[list-item]
        lambda: Mix([]),
        lambda: Mix([A, B], [1.0]),
        lambda: Mix([A], normalise="ranks"),  # type: ignore[arg-type]
        lambda: Union([A, B], [1.0]),
        lambda: Union([A, B], [0.0, 0.0]),
        lambda: Union([A, B], [2.0, -1.0]),
        lambda: Protect(A, (0.5, 0.0, 0.5, 1.0)),
        lambda: SpatialQuota(A, rows=0),
    ],
)
def test_bad_arguments(make: Any) -> None:
    with pytest.raises(PolicyError):
        make()


def test_what_they_need_of_images() -> None:
    tokens = scored((30, 17), grid=None)
    for policy in (Protect(A), SpatialQuota(A)):
        with pytest.raises(UnsupportedInputError, match=rf"{type(policy).__name__} needs images .* same grid"):
            policy.select(tokens, Keep(ratio=0.5))
    some = left(tokens, torch.arange(10).expand(2, -1), (10, 10))  # of which image is not known
    with pytest.raises(BudgetError, match=r"an earlier stage decided for whole samples"):
        PerImage(A).select(some, Keep(ratio=0.2))
