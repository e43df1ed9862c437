"""What `prunekit bench` is asked for, checked before anything is loaded, and the run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal

from torch import Tensor

from prunekit.adapter import ModelAdapter, adapter_for
from prunekit.budget import Budget
from prunekit.errors import BudgetError, ConfigError, MeasurementError, OutputError, PrunekitError, nearest
from prunekit.evaluation.cells import Cell, plan_cells
from prunekit.evaluation.config import read_methods
from prunekit.evaluation.experiment import Experiment, ModelSpec
from prunekit.evaluation.loading import ModelFacts
from prunekit.evaluation.scenes import Scenes
from prunekit.latency.machine import device_of
from prunekit.latency.measure import measure
from prunekit.latency.protocol import Protocol
from prunekit.latency.result import Benchmark, Skipped
from prunekit.latency.source import find, prepare
from prunekit.latency.timer import timer_for
from prunekit.provenance import hardware, versions

__all__ = ["AS_CONFIGURED", "Request", "bench"]

DTYPES = ("float32", "bfloat16", "float16")
ATTENTION = ("sdpa", "eager")
AS_CONFIGURED = "configured"


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        model: `tiny`, a folder, a hub name; with `random` also a preset, a config.json or a family.
        methods: as in an experiment, each as YAML text.
        budgets: as in an experiment; none runs methods as they are configured.
        protocol: how often, on how many samples and tokens.
        text_tokens: tokens of the prompt that are not visual.
        device: `auto`, `cpu`, `cuda` or `cuda:<i>`.
        dtype: of the weights.
        attention: of transformers, for all rows.
        timer: `auto`, `cuda` or `wall`.
        random: random weights, of the config alone.
        sizes: of a random family: `hidden`, `layers`, ...
        roofline: whether operations, bytes and the device's peaks are measured, too.
        output: JSON file to write; None writes none.
    """

    model: str
    methods: tuple[str, ...]
    budgets: tuple[int | float | Budget, ...] = (0.25,)
    protocol: Protocol = field(default_factory=Protocol)
    text_tokens: int = 64
    device: str = "auto"
    dtype: str = "float32"
    attention: Literal["sdpa", "eager"] = "sdpa"
    timer: str = "auto"
    random: bool = False
    sizes: Mapping[str, int] = field(default_factory=dict)
    roofline: bool = True
    output: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant.

        Raises:
            ConfigError: a type or an attention that is not offered.
            OutputError: the file exists, or cannot be written.
        """
        for name, allowed in (("dtype", DTYPES), ("attention", ATTENTION)):
            given = getattr(self, name)
            if given not in allowed:
                raise ConfigError(f"{name}: {given!r}; allowed are {', '.join(allowed)}.{nearest(given, allowed)}")
        if self.output is not None:
            _check_output(Path(self.output))


def bench(request: Request) -> Benchmark:
    """Measure methods on a model, beside the dense model under the same attention.

    A method that cannot reach a budget, or cannot work on this model, is left out: `Benchmark.skipped` says why.

    Returns:
        The result; it is also in `request.output`, where that is given.

    Raises:
        MeasurementError: no such device or timer, not enough memory, a prompt that cannot be had, or several methods
            and budgets of which none can be measured.
        PrunekitError: a mistake in the model, the methods or the budgets; or the only method is one to be left out.
    """
    device = device_of(request.device)
    timer = timer_for(device, request.timer)
    methods = read_methods(request.methods)
    protocol = request.protocol
    source = find(
        request.model,
        random=request.random,
        sizes=request.sizes,
        dtype=request.dtype,
        attention=request.attention,
        text=request.text_tokens,
    )
    most = max(protocol.batch)
    model, inputs = prepare(source, device, most, request.text_tokens, protocol.decode_tokens)
    adapter = adapter_for(model)
    spec = ModelSpec(path=request.model, dtype=request.dtype, attn_implementation=request.attention)  # type: ignore[arg-type]
    experiment = Experiment(methods, Scenes(scenes=1), spec, list(request.budgets))
    visual = int(adapter.visual_mask(inputs["input_ids"], None).sum())
    cells, skipped = _plan(experiment, _facts(adapter, visual), request.text_tokens)
    found = measure(model, inputs, cells, protocol, timer=timer, roofline=request.roofline)
    setup = found.setup | _setup(request, adapter, cells, inputs, visual)
    found = replace(found, setup=setup | {"hardware": hardware(device), "versions": versions()}, skipped=skipped)
    if request.output is not None:
        _write(Path(request.output), found)
    return found


def _plan(experiment: Experiment, facts: ModelFacts, text: int) -> tuple[list[Cell], tuple[Skipped, ...]]:
    """The cells that can be measured, the dense model first, and what is left out.

    Raises:
        PrunekitError: nothing is left to be measured.
    """
    cells: list[Cell] = []
    errors: list[PrunekitError] = []
    skipped: list[Skipped] = []
    for name, method in experiment.methods.items():
        for alone in [[each] for each in experiment.budgets] or [[]]:
            budget = alone[0] if alone else None
            one = replace(experiment, methods={name: method}, budgets=alone, unreachable="skip")
            amount = str(budget) if isinstance(budget, Budget) else budget
            try:
                dense, cell = plan_cells(one, facts, images=1, text=text)
                if cell.stages is None:
                    raise BudgetError(f"methods.{name} at budget {budget}: {cell.reason}")
                cells += [cell] if cells else [dense, cell]
            except PrunekitError as error:
                errors.append(error)
                skipped.append(Skipped(name, amount, str(error)))
    if len(errors) == 1 and not cells:
        raise errors[0]
    if not cells:
        raise MeasurementError(f"Nothing can be measured. {' '.join(map(str, errors))}")
    return cells, tuple(skipped)


def _facts(adapter: ModelAdapter, visual: int) -> ModelFacts:
    """What plans need to know; the number of visual tokens is that of this prompt, whatever it depends on."""
    sites = tuple(adapter.sites())
    return ModelFacts(
        type(adapter.model).__name__, adapter.depth, visual, adapter.grid_of(visual), sites, adapter.model
    )


def _setup(
    request: Request, adapter: ModelAdapter, cells: list[Cell], inputs: Mapping[str, Tensor], visual: int
) -> dict[str, object]:
    asked = {name: value for name, value in asdict(request).items() if name not in ("output", "protocol")}
    stages = {
        cell.label: [f"{each.site}: {each.policy} keeps {each.keep}" for each in cell.stages or ()] for cell in cells
    }
    return {
        "request": asked | {"budgets": [str(budget) for budget in request.budgets]},
        "model": {
            "class": type(adapter.model).__name__,
            "parameters": sum(weight.numel() for weight in adapter.model.parameters()),
            "decoder_layers": adapter.depth,
            "hidden": adapter.text_config.hidden_size,
            "encoder_layers": adapter.vision_depth,
        },
        "prompt": {"visual": visual, "text": request.text_tokens, "length": int(inputs["input_ids"].shape[1])},
        "stages": stages,
    }


def _check_output(file: Path) -> None:
    if file.exists():
        raise OutputError(f"--output: {file} exists; name a file that does not, or remove it.")
    if not file.parent.is_dir() or not os.access(file.parent, os.W_OK):
        raise OutputError(f"--output: {file} cannot be written: {file.parent} is no folder that can be written to.")


def _write(file: Path, found: Benchmark) -> None:
    try:
        file.write_text(json.dumps(found.to_dict(), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"--output: {file} cannot be written: {error.strerror}.") from None
