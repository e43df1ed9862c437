"""Lightning callbacks that log what methods cost while they are evaluated: tokens, operations, time, memory.

All of them log once, at the end of the test, under names that begin with what is measured and go on with the method and
its budget, as accuracies do: `macs/STAR 25 %/prefill`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import Callback, LightningModule, Trainer

from prunekit.adapter import adapter_for
from prunekit.evaluation.data import Job
from prunekit.evaluation.experiment import DENSE
from prunekit.evaluation.measure import count_operations
from prunekit.evaluation.predictions import Prediction
from prunekit.latency.measure import measure
from prunekit.latency.protocol import Protocol

__all__ = ["CostCallback", "KeptTokensCallback", "LatencyCallback"]


def _log(module: LightningModule, trainer: Trainer, values: Mapping[str, float]) -> None:
    """Hand values to the logger; of several processes their mean."""
    module.log_dict({name: float(value) for name, value in values.items()}, sync_dist=trainer.world_size > 1)


@final
class KeptTokensCallback(Callback):
    """Logs the visual tokens that entered each decoder layer, averaged over the samples that were answered.

    Names: `visual_tokens/<method>/decoder.<i>`, and `visual_tokens/<method>/average` over layers.
    """

    def __init__(self) -> None:
        self._sums: dict[int, NDArray[np.float64]] = {}
        self._samples: dict[int, int] = {}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._sums, self._samples = {}, {}

    def on_test_batch_end(  # type: ignore[override]
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Mapping[str, list[Prediction]],
        batch: Job,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        depth = adapter_for(pl_module.model).depth  # type: ignore[arg-type]
        levels = np.array([_levels(prediction, depth) for prediction in outputs["predictions"]], np.float64)
        self._sums[batch.cell] = self._sums.get(batch.cell, 0) + levels.sum(0)
        self._samples[batch.cell] = self._samples.get(batch.cell, 0) + len(levels)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bench: Any = pl_module.bench
        for index, total in sorted(self._sums.items()):
            levels, label = total / self._samples[index], bench.cells[index].label
            values = {f"visual_tokens/{label}/decoder.{layer}": value for layer, value in enumerate(levels)}
            _log(pl_module, trainer, {**values, f"visual_tokens/{label}/average": float(levels.mean())})


def _levels(prediction: Prediction, depth: int) -> list[int]:
    """Visual tokens that entered each decoder layer, from those that each stage left."""
    levels = [prediction.visual] * depth
    for site, count in prediction.kept.items():  # in the order of the forward pass
        part, _, index = site.partition(".")
        first = int(index) if part == "decoder" else 0
        levels[first:] = [count] * (depth - first)
    return levels


@final
class CostCallback(Callback):
    """Logs the operations of one prefill, of the task's first sample alone.

    Names: `macs/<method>/<part>` in multiply-adds, parts as in `prunekit.flops.Cost`; `flops/<method>` in all, a
    multiply-add being two.
    """

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bench: Any = pl_module.bench
        with torch.inference_mode(False), torch.no_grad():
            costs = count_operations(bench, bench.single(0)[1])
        for index, cell, _ in bench.reachable:
            cost = costs[index]
            values = {f"macs/{cell.label}/{part}": macs for part, macs in cost["macs"].items()}
            _log(pl_module, trainer, {**values, f"flops/{cell.label}": cost["flops"]})


@final
class LatencyCallback(Callback):
    """Logs time and memory of every method, measured in turns with the dense model on the task's first sample.

    Names: `prefill_ms/<method>`, `decode_ms/<method>` per token, `peak_memory_mib/<method>` of a prefill, and
    `prefill_speedup/<method>` and `decode_speedup/<method>` over the dense model, medians of the ratios of each round.

    Args:
        repeats: rounds.
        batch: samples, copies of the first.
        decode_tokens: tokens decoded.
    """

    def __init__(self, repeats: int = 5, batch: int = 1, decode_tokens: int = 8) -> None:
        self.protocol = Protocol(batch=(batch,), decode_tokens=decode_tokens, repeats=repeats)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bench: Any = pl_module.bench
        cells = [cell for _, cell, _ in bench.reachable]
        inputs = bench.single(0)[1]
        found = measure(bench.model, inputs, cells, self.protocol, positions=bench.positions, roofline=False)
        for row in found.rows:
            values = {f"{part}_ms/{row.label}": row.milliseconds(part) or 0.0 for part in ("prefill", "decode")}
            values[f"peak_memory_mib/{row.label}"] = row.peak_memory / 2**20
            for part in ("prefill", "decode") if row.name != DENSE else ():
                values[f"{part}_speedup/{row.label}"] = found.speedup(row, part).median
            _log(pl_module, trainer, values)
