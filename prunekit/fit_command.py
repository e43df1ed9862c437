"""`prunekit fit`: fit a method to a model on a task's samples, and say it as YAML for an experiment."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor

from prunekit.errors import ConfigError, DataError, OutputError, nearest
from prunekit.evaluation.config import read_task
from prunekit.evaluation.data import collate, read_sample, to_device
from prunekit.evaluation.experiment import ModelSpec
from prunekit.evaluation.loading import load_model, load_processor, model_facts
from prunekit.evaluation.task import Task
from prunekit.fitting import fit_schedule, search_layer

__all__ = ["METHODS", "TASK", "Request", "fitted"]

METHODS = ("FitPrune", "VTW")
TASK = "{class_path: Scenes, init_args: {split: development}}"


@dataclass(frozen=True)
class Request:
    """What the command line asks for.

    Attributes:
        model: tiny, a local folder, or a hub name.
        method: one of `METHODS`.
        saving: of FitPrune, see `fit_schedule`.
        threshold: of VTW, see `search_layer`.
        first: of VTW, the earliest layer to try; None stands for 5.
        samples: how many of the task's, spread evenly over it.
        task: YAML text, as in an experiment.
        dtype: of the weights.
        output: file to write to; None prints only.
    """

    model: str
    method: str = "FitPrune"
    saving: float | None = None
    threshold: float | None = None
    first: int | None = None
    samples: int = 32
    task: str = TASK
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    output: str | None = None

    def check(self) -> None:
        """Refuse what cannot be meant, before anything is loaded.

        Raises:
            ConfigError: an unknown method, no samples, an option that the method lacks or does not know.
            OutputError: the file exists, or cannot be written.
        """
        if self.method not in METHODS:
            raise ConfigError(
                f"--method: {self.method!r} has nothing to fit; methods that are fitted are {', '.join(METHODS)}."
                f"{nearest(self.method, METHODS)}"
            )
        options = {"saving": "FitPrune", "threshold": "VTW", "first": "VTW"}
        for option, owner in options.items():
            if getattr(self, option) is not None and owner != self.method:
                raise ConfigError(f"--{option} belongs to {owner}, not to {self.method}.")
        if self.method == "FitPrune" and self.saving is None:
            raise ConfigError("FitPrune needs the share of the prefill's FLOPs that is to be saved: --saving 0.5")
        if self.method == "VTW" and self.threshold is None:
            raise ConfigError(
                "VTW needs the least mean cosine between final states with and without visual tokens, and the authors'"
                " is not known: --threshold 0.99"
            )
        if self.samples < 1:
            raise ConfigError(f"--samples: at least 1 is needed, given {self.samples}.")
        if self.output is not None:
            _check_output(Path(self.output))

    @property
    def command(self) -> str:
        """The command line that asks for this, with options that are not the default."""
        given = ((name, getattr(self, name)) for name in self.__dataclass_fields__ if name not in ("model", "output"))
        default = {name: field.default for name, field in self.__dataclass_fields__.items()}
        words = [f"--{name} {_quoted(value)}" for name, value in given if value != default[name]]
        return " ".join(["prunekit fit", _quoted(self.model), *words])


def fitted(request: Request) -> str:
    """Fit, and return the YAML: an entry of an experiment's `methods`, with what was found in comments.

    Raises:
        PrunekitError: see `Request.check`, and those of loading a model, a task, and of fitting.
    """
    request.check()
    task = read_task(request.task)
    if request.samples > len(task):
        raise DataError(f"--samples: the task {task.name} has only {len(task)}, given {request.samples}.")
    spec = ModelSpec(path=request.model, dtype=request.dtype)
    model_facts(spec)  # refuses models that cannot be pruned before their weights are read
    model, processor = load_model(spec), load_processor(spec)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    inputs = _inputs(model, processor, task, request.samples)
    told, entry = (_fit_prune if request.method == "FitPrune" else _vtw)(model, inputs, request)
    lines = [f"# {line}" for line in (request.command, *told)]
    text = "\n".join([*lines, yaml.safe_dump(entry, sort_keys=False, default_flow_style=None, width=120)])
    if request.output is not None:
        _write(Path(request.output), text)
    return text


def _inputs(model: Any, processor: Any, task: Task, samples: int) -> Iterator[dict[str, Tensor]]:
    """Samples one by one, so that none is padded, spread evenly over the task."""
    for number in range(samples):
        yield to_device(collate(processor, [read_sample(task, number * len(task) // samples)]), model)


def _fit_prune(model: Any, inputs: Iterator[dict[str, Tensor]], request: Request) -> tuple[list[str], dict[str, Any]]:
    assert request.saving is not None  # `check` has seen to it
    fit = fit_schedule(model, inputs, request.saving)
    levels = ", ".join(map(str, fit.visual_tokens_per_layer))
    average = sum(fit.visual_tokens_per_layer) / len(fit.visual_tokens_per_layer)
    told = [
        f"saves {fit.saving:.2%} of the prefill's FLOPs in the language model on {fit.samples} samples; epsilon is"
        f" {fit.epsilon:.4f}",
        f"visual tokens entering each layer: {levels} ({average:.1f} on average)",
    ]
    arguments = {"deletions": list(fit.method.deletions), "visual": fit.method.visual}
    return told, {f"FitPrune {request.saving:g}": {"class_path": "FitPrune", "init_args": arguments}}


def _vtw(model: Any, inputs: Iterator[dict[str, Tensor]], request: Request) -> tuple[list[str], dict[str, Any]]:
    assert request.threshold is not None  # `check` has seen to it
    search = search_layer(model, inputs, request.threshold, 5 if request.first is None else request.first)
    told = [f"mean cosine of the last token's final state on {search.samples} samples, by layer of withdrawal:"]
    told += [f"  {layer}: {value:.4f}" for layer, value in search.similarity.items()]
    layer = search.method.layer
    return told, {f"VTW {layer}": {"class_path": "VTW", "init_args": {"layer": layer}}}


def _check_output(file: Path) -> None:
    if file.exists():
        raise OutputError(f"--output: {file} exists; name a file that does not, or remove it.")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise OutputError(f"--output: {file} cannot be written: {file.parent} is no folder that can be written to.")


def _write(file: Path, text: str) -> None:
    try:
        file.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--output: {file} cannot be written: {error.strerror}.") from None


def _quoted(value: object) -> str:
    text = str(value)
    return f"'{text}'" if set(text) & set(" {}[]") else text
