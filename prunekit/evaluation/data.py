"""The work of a run as Lightning sees it: batches of samples, each to be answered by every cell that still lacks them.

The order is batch by batch and, within a batch, cell by cell: images are read and processed once for all cells, and an
interrupted run has compared all methods on the same samples.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from prunekit.errors import DataError
from prunekit.evaluation.task import Sample, Task

__all__ = ["Job", "RunData", "Work", "collate", "read_sample", "to_device"]


@dataclass(frozen=True)
class Job:
    """One forward pass: samples with their numbers in the task, and the index of the cell that answers them."""

    cell: int
    numbers: tuple[int, ...]
    samples: tuple[Sample, ...]
    inputs: dict[str, Tensor]


def read_sample(task: Task, index: int) -> Sample:
    """A sample whose images have been read completely.

    Raises:
        DataError: the sample or one of its images is damaged or missing.
    """
    try:
        sample = task[index]
        for image in sample.images:
            with _closed_if_damaged(image):
                image.load()
    except DataError:
        raise
    except (OSError, SyntaxError, ValueError, EOFError) as error:  # Pillow raises all of these for damaged files
        text = " ".join(str(error).split())
        raise DataError(f"task {task.name}, sample {index}: an image cannot be read: {text}") from None
    if not sample.images:
        raise DataError(f"task {task.name}, sample {index} ({sample.id}) has no image.")
    return sample


def collate(processor: Any, samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Samples as the model's inputs, padded at the left."""
    images = [list(sample.images) for sample in samples]
    prompts = [sample.prompt for sample in samples]
    return dict(processor(images=images, text=prompts, return_tensors="pt", padding=True))


def to_device(inputs: Mapping[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Inputs where and as a model needs them: pixels get the model's type, ids stay integers."""
    moved = {name: value.to(model.device) for name, value in inputs.items()}
    return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in moved.items()}


@contextmanager
def _closed_if_damaged(image: Image.Image) -> Iterator[None]:
    """Pillow leaves the file of an image open that it could not read to its end."""
    try:
        yield
    except BaseException:
        image.close()
        raise


class Work(Dataset[Job]):
    """Jobs: (batch of sample numbers, cell) pairs.

    Args:
        task: the samples.
        processor: the model's.
        plan: for each job the cell and the sample numbers.
    """

    def __init__(self, task: Task, processor: Any, plan: Sequence[tuple[int, tuple[int, ...]]]) -> None:
        self._task, self._processor, self._plan = task, processor, plan
        self._last: tuple[tuple[int, ...], tuple[Sample, ...], dict[str, Tensor]] | None = None

    def __len__(self) -> int:
        return len(self._plan)

    def __getitem__(self, index: int) -> Job:
        cell, numbers = self._plan[index]
        if self._last is None or self._last[0] != numbers:
            samples = tuple(read_sample(self._task, number) for number in numbers)
            self._last = numbers, samples, collate(self._processor, samples)
        _, samples, inputs = self._last
        return Job(cell, numbers, samples, inputs)


class RunData(LightningDataModule):
    """The work that is left of a run."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self._work = work

    def test_dataloader(self) -> DataLoader[Job]:
        return DataLoader(self._work, batch_size=None, shuffle=False)

    def transfer_batch_to_device(self, batch: Job, device: Any, dataloader_idx: int) -> Job:
        model: Any = self.trainer.lightning_module.model  # type: ignore[union-attr]
        return replace(batch, inputs=to_device(batch.inputs, model))
