"""The handwritten digits that scenes are made of.

`digits.npz` holds the 1,797 images of 8x8 pixels (values 0 to 16) of the test part of the UCI data set
"Optical Recognition of Handwritten Digits" by E. Alpaydin and C. Kaynak (1998), https://doi.org/10.24432/C50P49,
as scikit-learn distributes them in `load_digits`.  Licence: Creative Commons Attribution 4.0 International
(CC BY 4.0).  Changes: stored as unsigned bytes; prunekit resizes, warps and colours them when it draws.

Every digit image belongs to exactly one split, so that no stroke of a test scene was ever seen in training.
"""

from __future__ import annotations

from functools import cache, lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SPLITS = ("train", "development", "test")
SHARES = (0.70, 0.15, 0.15)
_FILE = Path(__file__).with_name("digits.npz")
_SPLIT_SEED = 1998


@lru_cache(maxsize=1)
def digit_images() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """All images (1797, 8, 8) with values 0 to 16, and their labels."""
    with np.load(_FILE, allow_pickle=False) as data:
        return data["images"], data["labels"]


@cache
def split_indices(split: str) -> tuple[NDArray[np.intp], ...]:
    """For each digit 0 to 9 the indices of the images that belong to `split`; disjoint, balanced by class."""
    number = split_number(split)
    _, labels = digit_images()
    bounds = np.concatenate([[0.0], np.cumsum(SHARES)])
    chosen = []
    for digit in range(10):
        members = np.flatnonzero(labels == digit)
        order = np.random.default_rng([_SPLIT_SEED, digit]).permutation(members)
        low, high = (round(float(b) * len(order)) for b in bounds[number : number + 2])
        chosen.append(np.sort(order[low:high]))
    return tuple(chosen)


def split_number(split: str) -> int:
    """0, 1 or 2; raises ValueError for a name that is no split."""
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}: choose one of {', '.join(SPLITS)}")
    return SPLITS.index(split)


@lru_cache(maxsize=1)
def _padded() -> NDArray[np.float32]:
    images, _ = digit_images()
    return np.pad(images.astype(np.float32) / 16.0, ((0, 0), (1, 1), (1, 1)))


@cache
def _grid(size: int) -> NDArray[np.float32]:
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size) * 2.0 - 1.0
    y, x = np.meshgrid(axis, axis, indexing="ij")
    return np.stack([y.ravel(), x.ravel()])


def render_digit(rng: np.random.Generator, digit: int, size: int, split: str) -> NDArray[np.float32]:
    """A random image of `digit` from `split`, slightly warped, as an opacity mask (size, size) in [0, 1]."""
    members = split_indices(split)[digit]
    source = _padded()[members[rng.integers(len(members))]]
    angle, shear, sy, sx = rng.uniform((-0.15, -0.15, 0.95, 0.95), (0.15, 0.15, 1.1, 1.1))
    cos, sin = np.cos(angle), np.sin(angle)
    warp = np.array([[cos * sy, -sin], [sin + shear, cos * sx]], np.float32)
    at = np.clip((warp @ _grid(size)) * 4.0 + 4.5, 0.0, 8.999)
    low = at.astype(np.intp)
    fy, fx = at - low
    y, x = low
    top = source[y, x] * (1 - fx) + source[y, x + 1] * fx
    bottom = source[y + 1, x] * (1 - fx) + source[y + 1, x + 1] * fx
    return np.asarray(np.clip((top * (1 - fy) + bottom * fy) * 1.6, 0.0, 1.0).reshape(size, size), np.float32)
