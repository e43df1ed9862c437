"""Drawing: textured noisy backgrounds, gray clutter, coloured digits and shapes, all in numpy.

An image is a grid of 4x4 cells of 24 pixels, each with room for one object.  A cell is exactly 3x3 patches of
8 pixels, so that no patch ever shows two objects.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray

from prunekit.scenes.digits import render_digit

IMAGE_SIZE = 96
PATCH_SIZE = 8
GRID = IMAGE_SIZE // PATCH_SIZE
CELL_SIZE = 24
CELLS = IMAGE_SIZE // CELL_SIZE

COLORS: dict[str, tuple[int, int, int]] = {
    "red": (225, 40, 40),
    "green": (40, 190, 50),
    "blue": (50, 70, 235),
    "yellow": (235, 220, 40),
    "purple": (170, 50, 200),
    "cyan": (40, 210, 220),
}
SHAPES = ("circle", "square", "triangle", "cross")
DIGITS = tuple(str(d) for d in range(10))
SHAPE_SIZES = (14, 16, 18)
DIGIT_SIZES = (16, 18, 20)
MIN_PIXELS = 6
"""A patch counts as covered by an object if at least this many of its 64 pixels are."""


@dataclass(frozen=True, eq=False)
class SceneObject:
    """One object: `kind` is a digit ("0" to "9") or a shape, `box` is (left, top, right, bottom)."""

    kind: str
    color: str
    box: tuple[int, int, int, int]
    cell: tuple[int, int]
    patches: NDArray[np.bool_]
    """Boolean grid (12, 12): the patches that the object visibly covers."""

    @property
    def is_digit(self) -> bool:
        return self.kind in DIGITS

    @property
    def center(self) -> tuple[float, float]:
        """(x, y) in pixels."""
        left, top, right, bottom = self.box
        return (left + right) / 2, (top + bottom) / 2


@cache
def shape_mask(kind: str, size: int) -> NDArray[np.float32]:
    """Opacity (size, size) of a shape, anti-aliased by drawing it four times as large."""
    fine = 4 * size
    axis = (np.arange(fine) + 0.5) / fine * 2.0 - 1.0
    v, u = np.meshgrid(axis, axis, indexing="ij")
    if kind == "circle":
        inside = u**2 + v**2 < 0.92
    elif kind == "square":
        inside = (np.abs(u) < 0.82) & (np.abs(v) < 0.82)
    elif kind == "triangle":
        inside = (v > -0.92) & (v < 0.85) & (np.abs(u) < (v + 0.92) / 1.77 * 0.98)
    elif kind == "cross":
        inside = ((np.abs(u) < 0.3) & (np.abs(v) < 0.95)) | ((np.abs(v) < 0.3) & (np.abs(u) < 0.95))
    else:
        raise ValueError(f"unknown shape {kind!r}")
    return np.asarray(inside.reshape(size, 4, size, 4).mean((1, 3)), np.float32)


@lru_cache(maxsize=1)
def _interpolation() -> NDArray[np.float32]:
    """Matrix (96, 7) that blows seven values up to 96 pixels, linearly."""
    at = np.linspace(0, 6, IMAGE_SIZE)
    low = np.minimum(at.astype(int), 5)
    weight = np.zeros((IMAGE_SIZE, 7), np.float32)
    weight[np.arange(IMAGE_SIZE), low] = 1 - (at - low)
    weight[np.arange(IMAGE_SIZE), low + 1] += at - low
    return weight


def background(rng: np.random.Generator) -> NDArray[np.float32]:
    """A smooth, slightly tinted gray texture with pixel noise and 3 to 6 gray bars (96, 96, 3)."""
    coarse = rng.standard_normal((3, 7, 7), dtype=np.float32)
    up = _interpolation()
    smooth = np.moveaxis(up @ coarse @ up.T, 0, -1)
    gray = smooth.mean(-1, keepdims=True)
    noise = rng.standard_normal((IMAGE_SIZE, IMAGE_SIZE, 1), dtype=np.float32) * rng.uniform(6, 18)
    picture = (rng.uniform(70, 170) + 26 * gray + 10 * (smooth - gray) + noise).astype(np.float32)
    for _ in range(rng.integers(3, 7)):
        height, width = rng.integers(3, 6), rng.integers(14, 40)
        if rng.random() < 0.5:
            height, width = width, height
        y, x = rng.integers(0, IMAGE_SIZE - height), rng.integers(0, IMAGE_SIZE - width)
        picture[y : y + height, x : x + width] += rng.choice([-1, 1]) * rng.uniform(25, 60)
    return np.asarray(picture, np.float32)


def place(
    rng: np.random.Generator, picture: NDArray[np.float32], kind: str, color: str, cell: int, split: str
) -> SceneObject:
    """Draw one object into its cell of `picture` (changed in place), at a random size and offset."""
    if kind in DIGITS:
        size = DIGIT_SIZES[rng.integers(len(DIGIT_SIZES))]
        mask = render_digit(rng, int(kind), size, split)
    else:
        size = SHAPE_SIZES[rng.integers(len(SHAPE_SIZES))]
        mask = shape_mask(kind, size)
    row, column = divmod(cell, CELLS)
    dy, dx = rng.integers(0, CELL_SIZE - size + 1, 2)
    y, x = row * CELL_SIZE + int(dy), column * CELL_SIZE + int(dx)
    paint = np.clip(np.asarray(COLORS[color]) + rng.normal(0, 14, 3), 0, 255).astype(np.float32)
    window = picture[y : y + size, x : x + size]
    window += (paint - window) * mask[..., None]
    in_cell = np.zeros((CELL_SIZE, CELL_SIZE), bool)
    in_cell[dy : dy + size, dx : dx + size] = mask > 0.4
    per_cell = CELL_SIZE // PATCH_SIZE
    covered = in_cell.reshape(per_cell, PATCH_SIZE, per_cell, PATCH_SIZE).sum((1, 3)) >= MIN_PIXELS
    patches = np.zeros((GRID, GRID), bool)
    patches[row * per_cell : (row + 1) * per_cell, column * per_cell : (column + 1) * per_cell] = covered
    patches.setflags(write=False)
    return SceneObject(kind, color, (x, y, x + size, y + size), (row, column), patches)


def to_bytes(picture: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Clip to 0..255 and make the array read-only."""
    image = np.clip(picture, 0, 255).astype(np.uint8)
    image.setflags(write=False)
    return image
