"""Policies that look at places alone, against plain loops."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from policies_common import positions, random_tokens

from prunekit import Keep, VisualTokens
from prunekit.patches import Image
from prunekit.policies import AveragePooling, Downsampling, UniformGrid
from prunekit.selection import merged


def places(tokens: VisualTokens, row: int) -> list[tuple[int, int, int]]:
    """Image, line and column of each token; an image without a grid is one line."""
    assert tokens.images is not None
    found = []
    for number, image in enumerate(tokens.images[row]):
        width = image.grid[1] if image.grid else image.tokens
        found += [(number, i // width, i % width) for i in range(image.tokens)]
    return found


@pytest.mark.parametrize(
    ("grid", "keep", "cell"),
    [((6, 8), 12, (2, 2)), ((6, 6), 4, (3, 3)), ((8, 8), 4, (4, 4)), ((6, 4), 6, (2, 2)), ((4, 6), 6, (2, 2))],
)
def test_average_pooling_is_that_of_torch(grid: tuple[int, int], keep: int, cell: tuple[int, int]) -> None:
    """Where the number divides the grid; every image by itself."""
    size = grid[0] * grid[1]
    tokens = random_tokens((2 * size, 2 * size), grid=grid)
    selection = AveragePooling().select(tokens, Keep(tokens=2 * keep))
    pictures = tokens.hidden.unflatten(1, (2, *grid)).flatten(0, 1).permute(0, 3, 1, 2)
    pooled = torch.nn.functional.avg_pool2d(pictures, cell).flatten(2).mT.reshape(2, 2 * keep, -1)
    torch.testing.assert_close(merged(tokens.hidden, selection), pooled)


def test_average_pooling_of_a_line() -> None:
    tokens = random_tokens((24,))
    selection = AveragePooling().select(tokens, Keep(tokens=6))
    torch.testing.assert_close(merged(tokens.hidden, selection), tokens.hidden.unflatten(1, (6, 4)).mean(2))


@pytest.mark.parametrize(("counts", "grid"), [((70, 35, 0), (5, 7)), ((30, 17, 1), None)])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.7])
def test_average_pooling_by_loops(counts: tuple[int, ...], grid: tuple[int, int] | None, ratio: float) -> None:
    tokens = random_tokens(counts, grid=grid)
    selection = AveragePooling().select(tokens, Keep(ratio=ratio))
    states = merged(tokens.hidden, selection)
    for row in range(len(counts)):
        kept, where = positions(selection, row), places(tokens, row)
        assert kept == positions(UniformGrid().select(tokens, Keep(ratio=ratio)), row)
        cells: dict[int, list[int]] = {i: [] for i in kept}
        for number, (image, line, column) in enumerate(where):
            own = [i for i in kept if where[i][0] == image]
            cells[min(own, key=lambda i: ((where[i][1] - line) ** 2 + (where[i][2] - column) ** 2, -i))].append(number)
        means = [tokens.hidden[row, members].mean(0) for members in cells.values()]
        if kept:
            torch.testing.assert_close(states[row, : len(kept)], torch.stack(means))


@pytest.mark.parametrize(("counts", "grid"), [((70, 35, 0), (5, 7)), ((30, 17, 1), None)])
@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.7])
def test_downsampling_by_loops(counts: tuple[int, ...], grid: tuple[int, int] | None, ratio: float) -> None:
    """Triangles around the kept tokens, as wide as the step between them."""
    tokens = random_tokens(counts, grid=grid)
    selection = Downsampling().select(tokens, Keep(ratio=ratio))
    states = merged(tokens.hidden, selection)
    for row, count in enumerate(counts):
        kept, where = positions(selection, row), places(tokens, row)
        step = max(1.0, count / max(1, len(kept))) ** (0.5 if grid else 1.0)
        for slot, own in enumerate(kept):
            weights = [
                max(0.0, 1 - abs(line - where[own][1]) / step) * max(0.0, 1 - abs(column - where[own][2]) / step)
                if image == where[own][0]
                else 0.0
                for image, line, column in where
            ]
            sums = sum(weight * tokens.hidden[row, i] for i, weight in enumerate(weights))
            torch.testing.assert_close(states[row, slot], sums / sum(weights))


def test_images_of_different_grids() -> None:
    """Each image is pooled on a grid of its own."""
    tokens = random_tokens((24 + 16 + 5,))
    images = (Image(24, (4, 6)), Image(16, (8, 2)), Image(5))
    tokens = replace(tokens, images=(images,), alive=((24, 16, 5),), per_image=None)
    selection = AveragePooling().select(tokens, Keep(ratio=0.25, per="image"))
    first, second, third = tokens.hidden[0].split([24, 16, 5])
    expected = torch.cat(
        [
            first.view(2, 2, 3, 2, -1).mean((1, 3)).flatten(0, 1),
            second.view(4, 2, 1, 2, -1).mean((1, 3)).flatten(0, 1),
            third.mean(0)[None],
        ]
    )
    torch.testing.assert_close(merged(tokens.hidden, selection)[0], expected)


@pytest.mark.parametrize("counts", [(30, 17, 1, 0), (1, 100)])
@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.9])
def test_equal_steps_without_a_grid(counts: tuple[int, ...], ratio: float) -> None:
    selection = UniformGrid().select(random_tokens(counts), Keep(ratio=ratio))
    for row, count in enumerate(counts):
        keep = Keep(ratio=ratio).count(count)
        assert positions(selection, row) == [int((i + 0.5) * count / keep) for i in range(keep)]
