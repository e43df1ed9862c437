"""The evaluation as a LightningModule: every test step is one batch through one cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import nn
from torchmetrics import MeanMetric

from prunekit.evaluation.answering import Positions, answer
from prunekit.evaluation.cells import Cell
from prunekit.evaluation.data import Job
from prunekit.evaluation.predictions import Prediction, PredictionFile
from prunekit.evaluation.task import Task

__all__ = ["EvaluationModule"]


class EvaluationModule(LightningModule):
    """Answers jobs, writes the predictions, and logs the accuracy of every cell.

    Args:
        model: the model, unmodified.
        processor: its processor.
        task: for judging answers.
        cells: all cells; a job names one by its index.
        positions: position ids of the kept tokens.
        done: predictions of an earlier, interrupted run, which count as well.
        folder: where predictions are written.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        task: Task,
        cells: Sequence[Cell],
        positions: Positions,
        done: Sequence[Prediction],
        folder: Path,
    ) -> None:
        super().__init__()
        self.model = model
        self._processor, self._task, self._cells, self._positions, self._done = processor, task, cells, positions, done
        self._accuracy: Any = nn.ModuleList(MeanMetric() for _ in cells)  # names with dots are no module names
        self._folder = folder

    def on_test_start(self) -> None:
        self._file = PredictionFile(self._folder, self.global_rank)
        if self.global_rank:
            return
        index = {(cell.name, cell.budget): i for i, cell in enumerate(self._cells)}
        for prediction in self._done:
            self._accuracy[index[prediction.method, prediction.budget]].update(float(prediction.correct))

    def test_step(self, batch: Job, batch_idx: int) -> None:
        cell = self._cells[batch.cell]
        assert cell.stages is not None  # jobs are made of reachable cells
        length = self._task.max_new_tokens
        texts, trace = answer(self.model, self._processor, batch.inputs, cell.stages, self._positions, length)
        predictions = self._judge(batch, cell, texts, trace)
        self._file.append(predictions)
        correct = torch.tensor([float(p.correct) for p in predictions], device=self.device)
        self._accuracy[batch.cell].update(correct)

    def on_test_epoch_end(self) -> None:
        values = {
            f"accuracy/{cell.label}": metric.compute()
            for cell, metric in zip(self._cells, self._accuracy, strict=True)
            if cell.stages is not None
        }
        self.log_dict(values)

    def _judge(self, job: Job, cell: Cell, texts: Sequence[str], trace: Sequence[Any]) -> list[Prediction]:
        image = int(self.model.config.image_token_id)
        visual = (job.inputs["input_ids"] == image).sum(1).tolist()
        kept = {record.site: (record.kept >= 0).sum(1).tolist() for record in trace}
        return [
            Prediction(
                method=cell.name,
                budget=cell.budget,
                index=number,
                sample=sample.id,
                group=sample.group,
                family=sample.family,
                question=sample.question,
                answer=sample.answer,
                prediction=text,
                correct=self._task.correct(text, sample.answer),
                visual=visual[row],
                kept={site: counts[row] for site, counts in kept.items()},
            )
            for row, (number, sample, text) in enumerate(zip(job.numbers, job.samples, texts, strict=True))
        ]
