"""`scenes`: a procedural visual question answering task with known objects, for offline experiments.

>>> from prunekit.scenes import scene
>>> picture = scene(0, split="test", seed=0)
>>> picture.questions[0].text, picture.questions[0].answer      # doctest: +SKIP
"""

from __future__ import annotations

from prunekit.scenes.digits import SPLITS
from prunekit.scenes.draw import COLORS, DIGITS, GRID, IMAGE_SIZE, PATCH_SIZE, SHAPES, SceneObject
from prunekit.scenes.questions import FAMILIES, VOCABULARY, Question
from prunekit.scenes.scene import Scene, crowded_scene, other_questions, scene

__all__ = [
    "COLORS",
    "DIGITS",
    "FAMILIES",
    "GRID",
    "IMAGE_SIZE",
    "PATCH_SIZE",
    "SHAPES",
    "SPLITS",
    "VOCABULARY",
    "Question",
    "Scene",
    "SceneObject",
    "crowded_scene",
    "other_questions",
    "scene",
]
