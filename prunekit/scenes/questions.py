"""Question families: one question of each family is asked about every scene.

Every question has seven words and a one-word answer, and its answer needs other parts of the image than those
of the other families.  Answers are as balanced as a scene allows, so that a model that does not look is near
chance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from prunekit.scenes.draw import COLORS, DIGITS, IMAGE_SIZE, SHAPES, SceneObject

QUADRANTS = ("topleft", "topright", "bottomleft", "bottomright")
DIRECTIONS = ("left", "right", "above", "below")
RELATION_CELLS = 2
"""`relation` asks only about digits that are at least this many cells apart along the axis in question."""
_COUNT_WEIGHTS = (0.6, 0.45, 2.0, 6.0)

_WORDS = "what color is the digit has shape there a here how many can you see where number or of ? yes no"
VOCABULARY: tuple[str, ...] = (
    *_WORDS.split(),
    *DIRECTIONS,
    *COLORS,
    *SHAPES,
    *DIGITS,
    *QUADRANTS,
)
"""Every word of every question and answer."""


@dataclass(frozen=True)
class Question:
    """`relevant` are the indices into `Scene.objects` of the objects that the answer depends on."""

    family: str
    text: str
    answer: str
    relevant: tuple[int, ...]


Objects = Sequence[SceneObject]
Asker = Callable[[np.random.Generator, Objects], tuple[str, str, tuple[int, ...]]]


def _pick(rng: np.random.Generator, items: Sequence[int]) -> int:
    return items[int(rng.integers(len(items)))]


def digits_in(objects: Objects) -> list[int]:
    """Indices of the digits."""
    return [i for i, o in enumerate(objects) if o.is_digit]


def shapes_in(objects: Objects) -> list[int]:
    """Indices of the shapes."""
    return [i for i, o in enumerate(objects) if not o.is_digit]


def unique_shapes(objects: Objects) -> list[int]:
    """Indices of the shapes whose kind occurs once."""
    kinds = [objects[i].kind for i in shapes_in(objects)]
    return [i for i in shapes_in(objects) if kinds.count(objects[i].kind) == 1]


def distant_pairs(objects: Objects) -> list[tuple[int, int, int]]:
    """(axis, i, j): digits i != j that are far enough apart along axis 0 (vertical) or 1 (horizontal)."""
    found = digits_in(objects)
    return [
        (axis, i, j)
        for axis in (0, 1)
        for i in found
        for j in found
        if i != j and abs(objects[i].cell[axis] - objects[j].cell[axis]) >= RELATION_CELLS
    ]


def answerable(objects: Objects) -> bool:
    """Whether every family has a question about these objects."""
    return bool(unique_shapes(objects)) and bool(distant_pairs(objects))


def _color_of_digit(rng: np.random.Generator, objects: Objects) -> tuple[str, str, tuple[int, ...]]:
    i = _pick(rng, digits_in(objects))
    return f"what color is the digit {objects[i].kind} ?", objects[i].color, (i,)


def _digit_of_color(rng: np.random.Generator, objects: Objects) -> tuple[str, str, tuple[int, ...]]:
    i = _pick(rng, digits_in(objects))
    return f"what digit has the color {objects[i].color} ?", objects[i].kind, (i,)


def _shape_of_color(rng: np.random.Generator, objects: Objects) -> tuple[str, str, tuple[int, ...]]:
    i = _pick(rng, shapes_in(objects))
    return f"what shape has the color {objects[i].color} ?", objects[i].kind, (i,)


def _color_of_shape(rng: np.random.Generator, objects: Objects) -> tuple[str, str, tuple[int, ...]]:
    i = _pick(rng, unique_shapes(objects))
    return f"what color is the {objects[i].kind} shape ?", objects[i].color, (i,)


def _exists(rng: np.random.Generator, objects: Objects) -> tuple[str, str, tuple[int, ...]]:
    """The answer "no" is asked about a colour and a shape that are both there, but not in one object."""
    shapes = shapes_in(objects)
    if rng.random() < 0.5:
        i = _pick(rng, shapes)
        return f"is there a {objects[i].color} {objects[i].kind} here ?", "yes", (i,)
    there = {(objects[i].color, objects[i].kind) for i in shapes}
    colors, kinds = sorted({c for c, _ in there}), sorted({k for _, k in there})
    absent = [(c, k) for c in colors for k in kinds if (c, k) not in there]
    color, kind = absent[int(rng.integers(len(absent)))]
    about = tuple(i for i in shapes if objects[i].color == color or objects[i].kind == kind)
    return f"is there a {color} {kind} here ?", "no", about


def _count(rng: np.random.Generator, objects: Objects) -> tuple[str, str, tuple[int, ...]]:
    shapes = shapes_in(objects)
    of_kind = {kind: tuple(i for i in shapes if objects[i].kind == kind) for kind in SHAPES}
    numbers = sorted({len(members) for members in of_kind.values()})
    weights = np.array([_COUNT_WEIGHTS[n] for n in numbers])
    number = int(rng.choice(numbers, p=weights / weights.sum()))
    kinds = [kind for kind in SHAPES if len(of_kind[kind]) == number]
    kind = kinds[int(rng.integers(len(kinds)))]
    return f"how many {kind} can you see ?", str(number), of_kind[kind]


def _where(rng: np.random.Generator, objects: Objects) -> tuple[str, str, tuple[int, ...]]:
    i = _pick(rng, digits_in(objects))
    x, y = objects[i].center
    quadrant = QUADRANTS[2 * int(y > IMAGE_SIZE / 2) + int(x > IMAGE_SIZE / 2)]
    return f"where is the digit number {objects[i].kind} ?", quadrant, (i,)


def _relation(rng: np.random.Generator, objects: Objects) -> tuple[str, str, tuple[int, ...]]:
    pairs = distant_pairs(objects)
    axes = sorted({axis for axis, _, _ in pairs})
    axis = _pick(rng, axes)
    candidates = [(i, j) for a, i, j in pairs if a == axis]
    i, j = candidates[int(rng.integers(len(candidates)))]
    before = objects[i].cell[axis] < objects[j].cell[axis]
    if axis == 0:
        text, answer = (
            f"{objects[i].kind} above or below digit {objects[j].kind} ?",
            "above" if before else "below",
        )
    else:
        text, answer = (
            f"{objects[i].kind} left or right of {objects[j].kind} ?",
            "left" if before else "right",
        )
    return text, answer, (i, j)


_ASKERS: dict[str, Asker] = {
    "color_of_digit": _color_of_digit,
    "digit_of_color": _digit_of_color,
    "shape_of_color": _shape_of_color,
    "color_of_shape": _color_of_shape,
    "exists": _exists,
    "count": _count,
    "where": _where,
    "relation": _relation,
}
FAMILIES: tuple[str, ...] = tuple(_ASKERS)


def ask(rng: np.random.Generator, objects: Objects) -> tuple[Question, ...]:
    """One question of every family, in the order of `FAMILIES`."""
    return tuple(Question(family, *asker(rng, objects)) for family, asker in _ASKERS.items())
