"""Scenes: images with known objects and questions, drawn on demand and never stored."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from prunekit.scenes.digits import split_number
from prunekit.scenes.draw import CELLS, COLORS, DIGITS, GRID, SHAPES, SceneObject, background, place, to_bytes
from prunekit.scenes.questions import Question, answerable, ask

_LAYOUT, _CROWD, _QUESTIONS = 0, 1, 2
_COLOR_NAMES = tuple(COLORS)


@dataclass(frozen=True, eq=False)
class Scene:
    """An image (96, 96, 3) of unsigned bytes, what is in it, and one question of every family about it."""

    image: NDArray[np.uint8]
    objects: tuple[SceneObject, ...]
    questions: tuple[Question, ...]

    def pil(self) -> Image.Image:
        """The image for a Hugging Face processor."""
        return Image.fromarray(self.image)

    def object_patches(self) -> NDArray[np.bool_]:
        """Boolean grid (12, 12) of the patches that show any object."""
        return self._union(range(len(self.objects)))

    def relevant_patches(self, question: Question | int) -> NDArray[np.bool_]:
        """Boolean grid (12, 12) of the patches that show what a question is about; may be empty (count 0)."""
        asked = self.questions[question] if isinstance(question, int) else question
        return self._union(asked.relevant)

    def _union(self, indices: range | tuple[int, ...]) -> NDArray[np.bool_]:
        grid = np.zeros((GRID, GRID), bool)
        for i in indices:
            grid |= self.objects[i].patches
        return grid


def _rng(split: str, seed: int, index: int, *stream: int) -> np.random.Generator:
    """Independent streams per (split, seed, index): nothing depends on how many scenes are asked for."""
    return np.random.default_rng(np.random.SeedSequence([split_number(split), seed, index], spawn_key=stream))


def scene(index: int, *, split: str, seed: int) -> Scene:
    """Scene number `index` of a split: the same for the same arguments, whichever others are drawn."""
    rng = _rng(split, seed, index, _LAYOUT)
    kinds, colors = _contents(rng)
    picture = background(rng)
    while True:
        cells = rng.permutation(CELLS * CELLS)[: len(kinds)]
        if _far_digits(kinds, cells):
            break
    objects = tuple(
        place(rng, picture, kind, color, int(cell), split)
        for kind, color, cell in zip(kinds, colors, cells, strict=True)
    )
    assert answerable(objects)
    questions = ask(_rng(split, seed, index, _QUESTIONS, 0), objects)
    return Scene(to_bytes(picture), objects, questions)


def other_questions(shown: Scene, index: int, *, split: str, seed: int, variant: int) -> tuple[Question, ...]:
    """Other questions about the scene that `scene` gave for the same arguments (variant 0: the same ones)."""
    return ask(_rng(split, seed, index, _QUESTIONS, variant), shown.objects)


def crowded_scene(index: int, *, split: str, seed: int, low: int = 11, high: int = 16) -> Scene:
    """A scene with `low` to `high` objects and no questions, for supervising a vision tower densely."""
    rng = _rng(split, seed, index, _CROWD)
    picture = background(rng)
    objects = []
    for cell in rng.permutation(CELLS * CELLS)[: rng.integers(low, high + 1)]:
        names = DIGITS if rng.random() < 0.7 else SHAPES
        kind, color = names[rng.integers(len(names))], _COLOR_NAMES[rng.integers(len(_COLOR_NAMES))]
        objects.append(place(rng, picture, kind, color, int(cell), split))
    return Scene(to_bytes(picture), tuple(objects), ())


def _contents(rng: np.random.Generator) -> tuple[list[str], list[str]]:
    """Kinds and colours: 2 or 3 different digits, 2 to 4 shapes of which one kind is unique.

    Colours differ among the digits and among the shapes; a digit and a shape may share one.
    """
    n_digits = int(rng.integers(2, 4))
    digits = [DIGITS[d] for d in rng.permutation(10)[:n_digits]]
    while True:
        n_shapes, alike = int(rng.integers(2, 5)), int(rng.integers(1, 4))
        common, *others = (SHAPES[s] for s in rng.permutation(len(SHAPES)))
        if alike > n_shapes:
            continue
        shapes = [common] * alike + [others[rng.integers(3)] for _ in range(n_shapes - alike)]
        if any(shapes.count(kind) == 1 for kind in shapes):
            break
    paint = [*rng.permutation(len(COLORS))[:n_digits], *rng.permutation(len(COLORS))[:n_shapes]]
    return digits + shapes, [_COLOR_NAMES[p] for p in paint]


def _far_digits(kinds: list[str], cells: NDArray[np.intp]) -> bool:
    """Whether two digits lie far enough apart for the `relation` family."""
    at = [divmod(int(cell), CELLS) for kind, cell in zip(kinds, cells, strict=True) if kind in DIGITS]
    return any(abs(a[axis] - b[axis]) >= 2 for a in at for b in at for axis in (0, 1))
