"""From an experiment to a result: check everything, answer everything, measure, write."""

from __future__ import annotations

import datetime
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytorch_lightning import seed_everything

from prunekit.errors import DataError
from prunekit.evaluation.bench import Bench
from prunekit.evaluation.cells import Cell, plan_cells
from prunekit.evaluation.data import RunData, Work, collate, read_sample
from prunekit.evaluation.experiment import Experiment, resolved
from prunekit.evaluation.loading import ModelFacts, load_model, load_processor, model_facts
from prunekit.evaluation.measure import ROUNDS, count_operations, time_prefill
from prunekit.evaluation.module import EvaluationModule
from prunekit.evaluation.output import dated_folder, open_folder
from prunekit.evaluation.overlays import collect_overlays, draw_overlays
from prunekit.evaluation.plots import draw_pareto
from prunekit.evaluation.predictions import Prediction, PredictionFile
from prunekit.evaluation.report import write_report
from prunekit.evaluation.result import Result, summarise
from prunekit.evaluation.task import Sample
from prunekit.evaluation.trainer import make_trainer, test
from prunekit.provenance import hardware, versions

__all__ = ["RESULT", "run"]

RESULT = "result.json"


def run(experiment: Experiment, output: Path | str | None = None) -> Result:
    """Run an experiment, or what is left of it.

    Args:
        experiment: what to run.
        output: the folder for results; one that holds an unfinished run of the same experiment is continued. By
            default a new folder under `runs/`.

    Returns:
        The result, which is also in `result.json` in the folder.

    Raises:
        PrunekitError: a mistake in the experiment. All of them but damaged weights and images are found before
            anything is loaded.
        KeyboardInterrupt: Ctrl-C. What has been answered is kept.
    """
    facts = model_facts(experiment.model)
    if not len(experiment.task):
        raise DataError(f"task {experiment.task.name}: it has no samples.")
    processor = load_processor(experiment.model)
    first = read_sample(experiment.task, 0)
    cells = plan_cells(experiment, facts, images=len(first.images), text=_text(processor, first, facts))
    trainer = make_trainer(experiment.trainer)
    plain = resolved(experiment)
    folder = Path(output) if output is not None else dated_folder(experiment.task.name.lower())
    if trainer.is_global_zero:
        taken_up = open_folder(folder, plain)
        if taken_up and (folder / RESULT).exists():
            return Result.read(folder / RESULT)
        PredictionFile(folder).heal()
    started = time.time()
    seed_everything(experiment.seed, verbose=False)
    bench = Bench(load_model(experiment.model), processor, experiment.task, cells, experiment.positions)
    done = PredictionFile(folder).read()
    plan = remaining(cells, len(experiment.task), experiment.batch_size, done)
    if plan:
        data = RunData(Work(experiment.task, bench.processor, plan))
        test(trainer, EvaluationModule(bench, done, folder), data)
    if trainer.is_global_zero:
        bench.model.to(trainer.strategy.root_device)
        _finish(experiment, bench, facts, folder, started, continued=bool(done))
    trainer.strategy.barrier("result written")
    return Result.read(folder / RESULT)


def remaining(
    cells: Sequence[Cell], samples: int, batch_size: int, done: Sequence[Prediction]
) -> list[tuple[int, tuple[int, ...]]]:
    """Jobs that are left: for each batch of samples and each cell, those samples that the cell has not answered."""
    answered = {prediction.key for prediction in done}
    plan = []
    for start in range(0, samples, batch_size):
        batch = range(start, min(start + batch_size, samples))
        for index, cell in enumerate(cells):
            left = tuple(number for number in batch if (cell.name, cell.budget, number) not in answered)
            if left and cell.stages is not None:
                plan.append((index, left))
    return plan


def spread(samples: int, wanted: int) -> list[int]:
    """Sample numbers across a task, an odd step apart so that they are of different families."""
    step = max(1, samples // max(1, wanted)) | 1
    return sorted({(i * step) % samples for i in range(min(wanted, samples))})


def _finish(
    experiment: Experiment, bench: Bench, facts: ModelFacts, folder: Path, started: float, continued: bool
) -> None:
    """Put predictions into order, measure costs, draw, and write the result last: it says that the run is finished."""
    order = {(cell.name, cell.budget): i for i, cell in enumerate(bench.cells)}
    file = PredictionFile(folder)
    file.merge(lambda p: (order[p.method, p.budget], p.index))
    rows = summarise(bench.cells, file.read(), facts.depth, experiment.seed)
    timed = min(experiment.timing_samples, len(experiment.task))
    singles = [bench.single(number)[1] for number in range(max(1, timed))]
    times = time_prefill(bench, singles) if timed else {}
    costs = count_operations(bench, singles[0])
    methods = [replace(row, prefill_ms=times.get(i), **_operations(costs.get(i))) for i, row in enumerate(rows)]
    found = collect_overlays(bench, spread(len(experiment.task), experiment.overlay_samples))
    result = Result(
        experiment=resolved(experiment),
        provenance={
            "versions": versions(),
            "hardware": hardware(bench.model.device),
            "seed": experiment.seed,
            "date": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
            "wall_s": round(time.time() - started, 1),
            "continued": continued,
        },
        model={
            "path": experiment.model.path,
            "name": facts.name,
            "decoder_layers": facts.depth,
            "visual_tokens_per_image": facts.tokens_per_image,
            "grid": None if facts.grid is None else list(facts.grid),
        },
        task={
            "name": experiment.task.name,
            "version": experiment.task.version,
            "samples": len(experiment.task),
            "families": list(rows[0].families),
        },
        methods=methods,
        notes=_notes(timed, costs),
    )
    draw_pareto(result, folder / "pareto.png")
    pictures = draw_overlays(found, facts.grid, folder / "overlays") if found and facts.grid else []
    write_report(result, folder / "report.html", pictures)
    result.write(folder / RESULT)


def _text(processor: Any, sample: Sample, facts: ModelFacts) -> int:
    """Tokens of a sample's prompt that are not visual."""
    config: Any = facts.skeleton.config
    tokens = collate(processor, [sample])["input_ids"]
    return int(tokens.ne(int(config.image_token_id)).sum())


def _operations(cost: dict[str, Any] | None) -> dict[str, Any]:
    return {} if cost is None else {"macs": cost["macs"], "flops": cost["flops"]}


def _notes(timed: int, costs: Mapping[int, dict[str, Any]]) -> dict[str, str]:
    uncounted = sorted({name for cost in costs.values() for name in cost["uncounted"]})
    return {
        "interval": "95 % percentile bootstrap, 2,000 resamples of groups (images) with all their questions",
        "prefill_ms": f"median of {timed} prompts x {ROUNDS} rounds, batch size 1, methods in turns, after a warm-up",
        "macs": "multiply-adds of one prefill at batch size 1; flops = 2 x macs",
        "uncounted_operators": ", ".join(uncounted) or "none",
    }
