"""The evaluation as a LightningModule: every test step is one batch through one cell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pytorch_lightning import LightningModule
from torch import nn
from torchmetrics import MeanMetric

from prunekit.evaluation.bench import Bench
from prunekit.evaluation.cells import Cell
from prunekit.evaluation.data import Job
from prunekit.evaluation.predictions import Prediction, PredictionFile
from prunekit.trace import TraceRecord

__all__ = ["EvaluationModule"]


class EvaluationModule(LightningModule):
    """Answers jobs, writes the predictions, and logs the accuracy of every cell.

    Attributes:
        bench: what answers; callbacks measure it.

    Args:
        bench: the same.
        done: predictions of an earlier, interrupted run, which count as well.
        folder: where predictions are written.
    """

    def __init__(self, bench: Bench, done: Sequence[Prediction], folder: Path) -> None:
        super().__init__()
        self.model = bench.model  # as a submodule, so that Lightning moves it to the device
        self.bench, self._done, self._folder = bench, done, folder
        self._accuracy: Any = nn.ModuleList(MeanMetric() for _ in bench.cells)

    def on_test_start(self) -> None:
        self._file = PredictionFile(self._folder, self.global_rank)
        if self.global_rank:
            return
        index = {(cell.name, cell.budget): i for i, cell in enumerate(self.bench.cells)}
        for prediction in self._done:
            self._accuracy[index[prediction.method, prediction.budget]].update(float(prediction.correct))

    def test_step(self, batch: Job, batch_idx: int) -> dict[str, list[Prediction]]:
        """Answer a job; its predictions go on to callbacks."""
        cell = self.bench.cells[batch.cell]
        assert cell.stages is not None  # jobs are made of reachable cells
        predictions = self._judge(batch, cell, *self.bench.answer(batch.inputs, cell.stages))
        self._file.append(predictions)
        correct = torch.tensor([float(p.correct) for p in predictions], device=self.device)
        self._accuracy[batch.cell].update(correct)
        return {"predictions": predictions}

    def on_test_epoch_end(self) -> None:
        for index, cell, _ in self.bench.reachable:
            self.log(f"accuracy/{cell.label}", self._accuracy[index])

    def _judge(self, job: Job, cell: Cell, texts: Sequence[str], trace: Sequence[TraceRecord]) -> list[Prediction]:
        visual = self.bench.visual_tokens(job.inputs)
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
                correct=self.bench.task.correct(text, sample.answer),
                visual=visual[row],
                kept={site: counts[row] for site, counts in kept.items()},
            )
            for row, (number, sample, text) in enumerate(zip(job.numbers, job.samples, texts, strict=True))
        ]
