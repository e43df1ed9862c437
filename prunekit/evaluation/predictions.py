"""Predictions on disk: one JSON line each, appended as they come, so that an interrupted run loses nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path

from prunekit.errors import OutputError

__all__ = ["Key", "Prediction", "PredictionFile"]

Key = tuple[str, int | float | str | None, int]


@dataclass(frozen=True)
class Prediction:
    """What one method at one budget said about one sample.

    Attributes:
        method: the method's name in the experiment.
        budget: as the experiment writes it; None for the dense model and for methods that run as configured.
        index: number of the sample in the task.
        sample: the sample's id.
        group: the sample's group.
        visual: visual tokens of the sample before pruning.
        kept: visual tokens left by each stage, by site.
    """

    method: str
    budget: int | float | str | None
    index: int
    sample: str
    group: str
    family: str
    question: str
    answer: str
    prediction: str
    correct: bool
    visual: int
    kept: dict[str, int] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        """What makes a prediction unique within a run."""
        return self.method, self.budget, self.index


_NAMES = {f.name for f in fields(Prediction)}


class PredictionFile:
    """`predictions.jsonl` of a run. Each process of a run appends to a file of its own; `merge` makes them one.

    Args:
        folder: the run's output folder.
        rank: number of the process.
    """

    def __init__(self, folder: Path, rank: int = 0) -> None:
        self._folder = folder
        self.path = folder / (f"predictions.rank{rank}.jsonl" if rank else "predictions.jsonl")

    def read(self) -> list[Prediction]:
        """All predictions of all processes, each (method, budget, sample) once. A torn line at the end is left out."""
        found: dict[Key, Prediction] = {}
        for path in self._parts():
            for prediction in _lines(path):
                found.setdefault(prediction.key, prediction)
        return list(found.values())

    def heal(self) -> None:
        """Cut off a line that an interruption left unfinished, so that the next one starts on a line of its own."""
        for path in self._parts():
            content = path.read_bytes()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):
                with path.open("r+b") as file:
                    file.truncate(whole)

    def append(self, predictions: Iterable[Prediction]) -> None:
        """Write predictions so that they survive the end of this process."""
        text = "".join(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in predictions)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def merge(self, order: Callable[[Prediction], tuple[int, int]]) -> None:
        """Put the predictions of all processes into one file, sorted."""
        everything = sorted(self.read(), key=order)
        new = self._folder / "predictions.jsonl.new"
        with new.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(p), ensure_ascii=False) + "\n" for p in everything)
        os.replace(new, self._folder / "predictions.jsonl")
        for part in self._folder.glob("predictions.rank*.jsonl"):
            part.unlink()

    def _parts(self) -> list[Path]:
        return sorted(self._folder.glob("predictions*.jsonl"))


def _lines(path: Path) -> Iterator[Prediction]:
    """Predictions of one file, without an unfinished last line.

    Raises:
        OutputError: another line is damaged.
    """
    lines = path.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):  # what follows the last newline is unfinished or empty
        try:
            record = json.loads(line)
            yield Prediction(**{name: record[name] for name in _NAMES})
        except (ValueError, TypeError, KeyError) as error:
            raise OutputError(
                f"{path}, line {number} is no prediction ({error}); remove that line and run again."
            ) from None
