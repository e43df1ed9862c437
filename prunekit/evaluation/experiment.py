"""An experiment as typed data: what a YAML file says, and what Python code can say as well."""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from prunekit.budget import Budget
from prunekit.errors import BudgetError, ConfigError, nearest
from prunekit.evaluation.task import Task
from prunekit.keep import Keep
from prunekit.plan import Method, Stage
from prunekit.policy import PruningPolicy

__all__ = ["DENSE", "Experiment", "MethodLike", "ModelSpec", "resolved"]

MethodLike = Method | PruningPolicy | list[Stage]

DENSE = "dense"
"""Name of the row without pruning, which every run has."""


@dataclass(frozen=True)
class ModelSpec:
    """Which model is evaluated, and how it is loaded."""

    path: str = "tiny"
    """`tiny` (the bundled model), a local folder, or the name of a model on the Hugging Face hub."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights."""
    attn_implementation: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention code of transformers."""
    revision: str | None = None
    """Commit or tag of a model on the hub."""


@dataclass(frozen=True)
class Experiment:
    """Many methods and budgets on the same samples, with the dense model as the baseline of all of them."""

    methods: dict[str, MethodLike]
    """The methods by the names that results give them. Each is a class (`STAR`, or `class_path` with `init_args`), or a
    list of stages (`site`, `policy`, `keep`). A policy alone is one stage at `input`."""
    task: Task
    """What is asked: a task of prunekit or a class of your own."""
    model: ModelSpec = field(default_factory=ModelSpec)
    """The model."""
    budgets: list[int | float | Budget] = field(default_factory=list)
    """Average number of visual tokens per decoder layer, as a share of all (0.25) or as a number (36); or another
    measure by its name: `{flops: 0.3}`, `{kv: 0.2}`, `{tokens: 64}`, `{ratio: 0.1}`, `{average: 0.25}`. Every method
    runs at every budget. Without budgets, methods run as they are configured."""
    fixed: list[str] = field(default_factory=list)
    """Names of methods that run once, as configured, although there are budgets."""
    unreachable: Literal["refuse", "skip"] = "refuse"
    """What to do where a method cannot come down to a budget: refuse to start, or show the row as not reachable."""
    batch_size: int = 64
    """Samples per forward pass."""
    seed: int = 0
    """Seed of the run: random numbers of torch and numpy, and the bootstrap."""
    positions: Literal["original", "compact"] = "original"
    """Whether kept tokens keep their original position ids or are numbered anew."""
    timing_samples: int = 8
    """Samples on which the prefill of all methods is timed, in turns, at batch size 1; 0 to leave it out."""
    overlay_samples: int = 4
    """Samples for which kept tokens are drawn on the image; 0 to leave it out."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Arguments of Lightning's Trainer: devices, accelerator, strategy, precision, logger (with `class_path`), ..."""
    imports: list[str] = field(default_factory=list)
    """Folders in which your modules are looked for, besides the folder of the YAML file and the working directory."""

    def __post_init__(self) -> None:
        _check_methods(self)
        _check_budgets(self)
        for name, least in (("batch_size", 1), ("seed", 0), ("timing_samples", 0), ("overlay_samples", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: must be at least {least}, given {getattr(self, name)}.")


def _check_methods(experiment: Experiment) -> None:
    if DENSE in experiment.methods:
        raise ConfigError(f"methods.{DENSE}: the name is taken by the baseline, which is always included.")
    for name in experiment.fixed:
        if name not in experiment.methods:
            known = ", ".join(experiment.methods)
            hint = nearest(name, experiment.methods)
            raise ConfigError(f"fixed: {name!r} is none of the methods ({known}).{hint}")


def _check_budgets(experiment: Experiment) -> None:
    said: list[str] = []
    for index, budget in enumerate(experiment.budgets):
        where = f"budgets[{index}]"
        if isinstance(budget, (int, float)):
            _check_number(budget, where)
        meant = str(Budget.of(budget))
        if meant in said:
            raise BudgetError(f"{where}: {budget} is listed twice.")
        said.append(meant)
        if meant.startswith("latency="):
            raise BudgetError(
                f"{where}: an experiment has no measured times that a latency could be matched by; solve it in Python,"
                " with Budget(latency=...).solve(..., latency=...), and give the setting as a fixed method."
            )


def _check_number(budget: int | float, where: str) -> None:
    if budget <= 0:
        raise BudgetError(f"{where}: {budget} is no budget; give a share of the visual tokens or a number of tokens.")
    if isinstance(budget, float) and budget > 1:
        raise BudgetError(
            f"{where}: {budget} is above 1; a share is at most 1.0, and a number of tokens is written without a point."
        )


def resolved(value: Any) -> Any:
    """Plain data that says the same as an experiment or a part of it, defaults included; YAML can hold it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parameters = [f.name for f in dataclasses.fields(value) if f.init]
        plain = {name: resolved(getattr(value, name)) for name in parameters}
        if isinstance(value, (Method, PruningPolicy, Task)):
            return {"class_path": class_path(type(value)), "init_args": plain}
        default = {f.name: f.default for f in dataclasses.fields(value)} if isinstance(value, Keep) else {}
        return {k: v for k, v in plain.items() if v is not None and (k not in default or v != default[k])}
    if isinstance(value, (Method, PruningPolicy, Task)):
        given = [name for name in inspect.signature(type(value)).parameters if hasattr(value, name)]
        plain = {name: resolved(getattr(value, name)) for name in given}
        return {"class_path": class_path(type(value)), "init_args": plain}
    if isinstance(value, Mapping):
        return {str(k): resolved(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [resolved(v) for v in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return str(value) if isinstance(value, PurePath) else class_path(type(value))


def class_path(cls: type) -> str:
    """The shortest dotted path that a class can be imported from."""
    parts = cls.__module__.split(".")
    for end in range(1, len(parts)):
        module = sys.modules.get(".".join(parts[:end]))
        if getattr(module, cls.__name__, None) is cls:
            return ".".join([*parts[:end], cls.__name__])
    return f"{cls.__module__}.{cls.__qualname__}"
