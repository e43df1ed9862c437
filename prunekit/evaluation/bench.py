"""What every step of a run works with: a loaded model, its processor, the task, and the cells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from prunekit.evaluation.cells import Cell
from prunekit.evaluation.data import collate, read_sample, to_device
from prunekit.evaluation.task import Sample, Task
from prunekit.plan import Stage
from prunekit.session import Session, prune
from prunekit.trace import TraceRecord

__all__ = ["Bench", "Positions"]

Positions = Literal["original", "compact"]


@dataclass(frozen=True, eq=False)
class Bench:
    """A model that answers a task's samples, in the ways that the cells say.

    Attributes:
        model: the model, unmodified.
        processor: its processor.
        task: the samples, and the judge of answers.
        cells: methods at budgets, the dense model first.
        positions: position ids of kept tokens.
    """

    model: Any
    processor: Any
    task: Task
    cells: Sequence[Cell]
    positions: Positions = "original"

    @property
    def reachable(self) -> list[tuple[int, Cell, tuple[Stage, ...]]]:
        """Number, cell and stages of the cells that can be run."""
        return [(i, cell, cell.stages) for i, cell in enumerate(self.cells) if cell.stages is not None]

    def single(self, number: int) -> tuple[Sample, dict[str, Tensor]]:
        """One sample, and the model's inputs for it alone."""
        sample = read_sample(self.task, number)
        return sample, to_device(collate(self.processor, [sample]), self.model)

    @contextmanager
    def session(self, stages: Sequence[Stage]) -> Iterator[Session | None]:
        """A session with these stages, or nothing at all for the dense model."""
        if not stages:
            yield None
            return
        with prune(self.model, *stages, positions=self.positions) as session:
            yield session

    @torch.inference_mode()
    def answer(self, inputs: Mapping[str, Tensor], stages: Sequence[Stage]) -> tuple[list[str], list[TraceRecord]]:
        """Greedy answers to a batch on the model's device, through `model.generate`, and the stages' records."""
        with self.session(stages) as session:
            tokens = self.model.generate(**inputs, max_new_tokens=self.task.max_new_tokens, do_sample=False)
        new = tokens[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=True)
        return [text.strip() for text in texts], session.trace if session else []

    def visual_tokens(self, inputs: Mapping[str, Tensor]) -> list[int]:
        """Visual tokens of each row before pruning."""
        counts: list[int] = (inputs["input_ids"] == int(self.model.config.image_token_id)).sum(1).tolist()
        return counts
