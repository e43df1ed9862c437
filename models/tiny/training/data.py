"""Training data as flat arrays, generated once and cached; all model seeds share it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from prunekit.models.tiny.training.recipe import Recipe
from prunekit.models.tiny.training.words import QUESTION_LENGTH, TOKEN, encode
from prunekit.scenes import (
    COLORS,
    DIGITS,
    FAMILIES,
    GRID,
    IMAGE_SIZE,
    SHAPES,
    Question,
    Scene,
    crowded_scene,
    other_questions,
    scene,
)

KINDS: tuple[str, ...] = (*DIGITS, *SHAPES)
COLOR_NAMES: tuple[str, ...] = tuple(COLORS)
PATCHES = GRID * GRID


@dataclass
class Pool:
    """`n` scenes.  Labels of patches and pairs count from 1, with 0 for the background."""

    images: NDArray[np.uint8]
    """(n, 96, 96, 3)"""
    owner: NDArray[np.uint8]
    """(n, 144): 1 + index of the object that a patch shows."""
    kind: NDArray[np.uint8]
    """(n, 144): 1 + kind."""
    color: NDArray[np.uint8]
    """(n, 144): 1 + colour."""
    pairs: NDArray[np.bool_]
    """(n, kinds * colours): which kinds are there in which colours, the label of the [CLS] token."""
    questions: NDArray[np.uint8]
    """(n, variants, families, words)"""
    answers: NDArray[np.uint8]
    """(n, variants, families)"""
    relevant: NDArray[np.uint8]
    """(n, variants, families): bit i is set if the question is about object i."""

    def __len__(self) -> int:
        return len(self.images)


def collect(scenes: Sequence[tuple[Scene, Sequence[Sequence[Question]]]]) -> Pool:
    """Flatten scenes, each with one or more sets of questions."""
    n = len(scenes)
    variants = len(scenes[0][1])
    pool = Pool(
        images=np.zeros((n, IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8),
        owner=np.zeros((n, PATCHES), np.uint8),
        kind=np.zeros((n, PATCHES), np.uint8),
        color=np.zeros((n, PATCHES), np.uint8),
        pairs=np.zeros((n, len(KINDS) * len(COLOR_NAMES)), bool),
        questions=np.zeros((n, variants, len(FAMILIES), QUESTION_LENGTH), np.uint8),
        answers=np.zeros((n, variants, len(FAMILIES)), np.uint8),
        relevant=np.zeros((n, variants, len(FAMILIES)), np.uint8),
    )
    for i, (shown, asked) in enumerate(scenes):
        pool.images[i] = shown.image
        for j, thing in enumerate(shown.objects):
            kind, color = KINDS.index(thing.kind), COLOR_NAMES.index(thing.color)
            where = thing.patches.ravel()
            pool.owner[i, where], pool.kind[i, where], pool.color[i, where] = 1 + j, 1 + kind, 1 + color
            pool.pairs[i, kind * len(COLOR_NAMES) + color] = True
        for v, questions in enumerate(asked):
            for f, question in enumerate(questions):
                pool.questions[i, v, f] = encode(question.text)
                pool.answers[i, v, f] = TOKEN[question.answer]
                pool.relevant[i, v, f] = sum(1 << j for j in question.relevant)
    return pool


def scene_pool(n: int, split: str, seed: int, variants: int = 1) -> Pool:
    """The first `n` scenes of a split, with `variants` sets of questions each."""
    scenes = []
    for i in range(n):
        shown = scene(i, split=split, seed=seed)
        sets = [other_questions(shown, i, split=split, seed=seed, variant=v) for v in range(variants)]
        scenes.append((shown, sets))
    return collect(scenes)


def crowded_pool(n: int, split: str, seed: int) -> Pool:
    """Scenes full of objects, without questions."""
    return collect([(crowded_scene(i, split=split, seed=seed), ()) for i in range(n)])


def _cached(path: Path, make: Pool | None) -> Pool:
    if make is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, **{f.name: getattr(make, f.name) for f in fields(make)})
        os.replace(partial, path)
    with np.load(path, allow_pickle=False) as data:
        return Pool(**{f.name: data[f.name] for f in fields(Pool)})


def training_pools(recipe: Recipe, work: Path) -> tuple[Pool, Pool]:
    """The ordinary and the crowded training scenes, from the cache in the work folder if they are there."""
    seed = recipe.data_seed
    plain = work / f"scenes-{recipe.scenes}x{recipe.variants}-{seed}.npz"
    crowd = work / f"crowded-{recipe.crowded}-{seed}.npz"
    return (
        _cached(plain, None if plain.exists() else scene_pool(recipe.scenes, "train", seed, recipe.variants)),
        _cached(crowd, None if crowd.exists() else crowded_pool(recipe.crowded, "train", seed)),
    )
