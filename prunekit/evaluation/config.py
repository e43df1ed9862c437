"""From a YAML file and overrides to an `Experiment`, with one clear sentence where something is wrong."""

from __future__ import annotations

import copy
import difflib
import importlib
import itertools
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings

from prunekit.errors import ConfigError, nearest
from prunekit.evaluation._explain import explain
from prunekit.evaluation.experiment import Experiment, MethodLike, resolved
from prunekit.evaluation.scenes import Scenes  # noqa: F401  (its short name)
from prunekit.evaluation.task import Task
from prunekit.plugins import available_policies

__all__ = ["experiment_parser", "load_experiment", "read_methods", "read_task", "shipped_experiments"]


def experiment_parser(**settings: Any) -> ArgumentParser:
    """A parser with one option per field of `Experiment`."""
    set_parsing_settings(docstring_parse_attribute_docstrings=True, instantiate_subclass_spec_in_any=False)
    parser = ArgumentParser(exit_on_error=False, **settings)
    parser.add_class_arguments(Experiment, None)
    return parser


def load_experiment(path: Path | str, overrides: Sequence[str] = ()) -> Experiment:
    """Read an experiment from a YAML file; `overrides` are options such as `["--seed", "1"]`.

    Raises:
        ConfigError: the file is missing or no YAML, or says something that no experiment can be.
    """
    path = _found(Path(path))
    raw = _read(path)
    folders = [path.resolve().parent, Path.cwd()]
    with _importable([*folders, *(path.parent / f for f in raw.get("imports") or [])]):
        experiment = _parse(raw, overrides, path)
        _import_classes(experiment.trainer)
    own = _own_folder(resolved(experiment), path.resolve().parent)
    return replace(experiment, imports=sorted({*_absolute(experiment.imports, path), *own}))


def read_methods(texts: Sequence[str]) -> dict[str, MethodLike]:
    """Methods from YAML texts such as `STAR` or `{class_path: FastV, init_args: {layer: 3}}`, named by their classes.

    Raises:
        ConfigError: a text names no method.
    """
    raw: dict[str, Any] = {}
    for text in texts:
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(
                f"methods: {text!r} is no YAML; write STAR, or {{class_path: FastV, init_args: {{layer: 3}}}}."
            ) from None
        name = str(value.get("class_path", text) if isinstance(value, dict) else value).rpartition(".")[2]
        raw[name if name not in raw else f"{name} {len(raw) + 1}"] = value
    with _importable([Path.cwd()]):
        return _parse({"methods": raw, "task": "Scenes"}, (), Path("command line")).methods


def read_task(text: str) -> Task:
    """A task from YAML text such as `Scenes` or `{class_path: Scenes, init_args: {split: train}}`.

    Raises:
        ConfigError: it names no task.
    """
    try:
        raw = {"methods": {"Random": "Random"}, "task": yaml.safe_load(text)}
    except yaml.YAMLError:
        raise ConfigError(f"task: {text!r} is no YAML.") from None
    with _importable([Path.cwd()]):
        return _parse(raw, (), Path("command line")).task


def shipped_experiments() -> dict[str, Path]:
    """YAML files that come with prunekit, by name."""
    folder = Path(str(resources.files("prunekit") / "experiments"))
    return {file.stem: file for file in sorted(folder.glob("*.yaml"))}


def _parse(raw: dict[str, Any], overrides: Sequence[str], path: Path) -> Experiment:
    available_policies()  # imports them: a short name is that of an imported class
    parser = experiment_parser(prog="prunekit run")
    try:
        parsed = parser.parse_object(copy.deepcopy(raw))  # it writes into what it is given
    except ArgumentError as error:
        raise _refusal(raw, path.name, error) from None
    try:
        parsed = parser.parse_args(list(overrides), namespace=parsed)
        made = vars(parser.instantiate(parsed))
        return Experiment(**made | {"trainer": _plain(made["trainer"])})
    except ArgumentError as error:
        raise _refusal(_overridden(raw, overrides), "command line" if overrides else path.name, error) from None
    except ValueError as error:  # raised by a class while it was built
        raise _refusal(_overridden(raw, overrides), path.name, error) from None


def _refusal(raw: dict[str, Any], where: str, error: Exception) -> ConfigError:
    """Errors keep their own class where they have one, so that `BudgetError` stays one."""
    sentence = explain(raw, Experiment, "") or " ".join(str(error).split())
    kind = type(error) if isinstance(error, ValueError) and type(error).__module__ == "prunekit.errors" else ConfigError
    return kind(f"{where}: {sentence}")  # type: ignore[return-value]


def _overridden(raw: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """The YAML with overrides put in, roughly as jsonargparse does it; only used to explain a refusal."""
    merged = copy.deepcopy(raw)
    words = [part for word in overrides for part in (word.split("=", 1) if word.startswith("--") else [word])]
    for option, text in itertools.pairwise(words):
        if not option.startswith("--"):
            continue
        *parents, last = option[2:].removesuffix("+").split(".")
        at: Any = merged
        for key in parents:
            at = at.setdefault(key, {}) if isinstance(at, dict) else {}
        if isinstance(at, dict):
            at[last] = yaml.safe_load(text)
    return merged


def _found(path: Path) -> Path:
    """An existing file: the path itself, or the shipped experiment of that name."""
    if path.is_file():
        return path
    shipped = shipped_experiments()
    if str(path) in shipped:
        return shipped[str(path)]
    beside = [str(f) for f in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
    close = difflib.get_close_matches(str(path), beside, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else nearest(path.stem, shipped)
    what = "is a folder, not a YAML file" if path.is_dir() else "does not exist"
    raise ConfigError(f"{path} {what}; shipped experiments are {', '.join(shipped)}.{hint}")


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice, which YAML itself forbids and PyYAML lets pass."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = [key for key, _ in node.value if keys.count(key.value) > 1 and key.value != "<<"]
        if twice:
            raise yaml.MarkedYAMLError(
                problem=f"key {twice[-1].value!r} is given twice", problem_mark=twice[-1].start_mark
            )
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no text file in UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        tab = "a tab, but YAML is indented with spaces" if "'\\t'" in str(error.problem) else error.problem
        raise ConfigError(f"{path}{where}: {tab}.") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is no YAML: {error}") from None
    if not isinstance(raw, dict):
        given = "nothing" if raw is None else repr(raw)[:40]
        raise ConfigError(f"{path} holds {given}, but an experiment is keys with values, such as 'methods: ...'.")
    return raw


@contextmanager
def _importable(folders: Sequence[Path]) -> Iterator[None]:
    """Let modules in these folders be imported, before all others, as Python does for scripts."""
    before = list(sys.path)
    sys.path[:0] = [str(folder.resolve()) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before


def _own_folder(plain: Any, folder: Path) -> list[str]:
    """The YAML's folder, if one of its classes comes from there, so that the resolved config finds it from anywhere."""
    return [str(folder)] if any(_file(name).parent == folder for name in _class_paths(plain)) else []


def _plain(value: Any) -> Any:
    """Settings as the YAML has them: jsonargparse makes a namespace of what looks like a class."""
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list) else value


def _import_classes(trainer: dict[str, Any]) -> None:
    """Import the modules of loggers and callbacks while they can be found; the Trainer is built later, and refuses."""
    callbacks = trainer.get("callbacks")
    names = callbacks if isinstance(callbacks, list) else [callbacks]
    for name in [*_class_paths(trainer), *(name for name in names if isinstance(name, str))]:
        with suppress(ImportError):
            importlib.import_module(name.rpartition(".")[0] or "prunekit")


def _class_paths(plain: Any) -> Iterator[str]:
    if isinstance(plain, dict):
        yield from [plain["class_path"]] if "class_path" in plain else []
        plain = list(plain.values())
    if isinstance(plain, list):
        for item in plain:
            yield from _class_paths(item)


def _file(dotted: str) -> Path:
    module = sys.modules.get(dotted.rpartition(".")[0])
    return Path(getattr(module, "__file__", None) or "/").resolve()


def _absolute(folders: Sequence[str], path: Path) -> list[str]:
    return [str((path.parent / folder).resolve()) for folder in folders]
