"""What a task is: numbered samples, and when an answer is right."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from PIL import Image

__all__ = ["Sample", "Task"]


@dataclass(frozen=True, eq=False)
class Sample:
    """One question about one or more images.

    Attributes:
        id: unique within the task, and the same whenever the task is built with the same arguments.
        group: what samples have in common that makes their outcomes alike, such as the image. Confidence intervals
            resample groups, not samples.
        family: kind of question, for the table of accuracies by family.
        question: for people to read.
        prompt: what the processor is given, with the model's image placeholders.
        images: real images, in the order of the placeholders.
        answer: the reference.
    """

    id: str
    group: str
    family: str
    question: str
    prompt: str
    images: tuple[Image.Image, ...]
    answer: str


class Task(ABC):
    """Samples with reference answers. Subclasses are frozen dataclasses: their fields are the `init_args` in YAML.

    A task decides alone which samples there are: every method and budget of a run gets the same ones.

    Attributes:
        version: raised whenever scores of the same model could change.
        max_new_tokens: how long an answer can be, its end marker included.
    """

    version: ClassVar[int] = 1
    max_new_tokens: ClassVar[int] = 16

    @abstractmethod
    def __len__(self) -> int:
        """Number of samples."""

    @abstractmethod
    def __getitem__(self, index: int) -> Sample:
        """Sample number `index`; the same one for the same index."""

    def correct(self, prediction: str, answer: str) -> bool:
        """Whether a prediction counts as right: by default, equal but for case and space at the ends."""
        return prediction.strip().lower() == answer.strip().lower()

    @property
    def name(self) -> str:
        """How results name the task."""
        return type(self).__name__
