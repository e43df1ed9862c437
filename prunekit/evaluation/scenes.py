"""The offline task `Scenes`: questions about drawn scenes, as many as asked for, the same for the same seed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

from prunekit.errors import DataError
from prunekit.evaluation.task import Sample, Task
from prunekit.scenes import FAMILIES, Scene, scene

__all__ = ["Scenes"]


@lru_cache(maxsize=16)
def _drawn(index: int, split: str, seed: int) -> Scene:
    return scene(index, split=split, seed=seed)


@dataclass(frozen=True)
class Scenes(Task):
    """Eight questions, one of each family, about each of a number of drawn scenes.

    Args:
        split: which images of digits the scenes are drawn with; the bundled model was trained on `train`.
        seed: another seed gives other scenes.
        scenes: number of scenes; there are eight questions about each.
    """

    split: Literal["train", "development", "test"] = "test"
    seed: int = 0
    scenes: int = 150

    version: ClassVar[int] = 1
    max_new_tokens: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.scenes < 1:
            raise DataError(f"Scenes(scenes={self.scenes}): a task needs at least 1 scene.")
        if self.seed < 0:
            raise DataError(f"Scenes(seed={self.seed}): the seed must be at least 0.")

    def correct(self, prediction: str, answer: str) -> bool:
        """Every answer is one word: the first one counts, whatever the model says after it."""
        return prediction.split()[:1] == [answer]

    def __len__(self) -> int:
        return self.scenes * len(FAMILIES)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(index)
        number, family = divmod(index, len(FAMILIES))
        drawn = _drawn(number, self.split, self.seed)
        asked = drawn.questions[family]
        return Sample(
            id=f"{self.split}-{self.seed}-{number}-{asked.family}",
            group=f"{self.split}-{self.seed}-{number}",
            family=asked.family,
            question=asked.text,
            prompt=f"USER: <image> {asked.text} ASSISTANT:",
            images=(drawn.pil(),),
            answer=asked.answer,
        )
