"""What experiments can name: policies, models, tasks and shipped experiments, from the classes themselves."""

from __future__ import annotations

import inspect

from prunekit.errors import ConfigError, nearest

__all__ = ["KINDS", "entries"]

KINDS = ("policies", "models", "tasks", "experiments")


def entries(kind: str) -> list[tuple[str, str]]:
    """Name and one line about everything of a kind.

    Raises:
        ConfigError: there is no such kind.
    """
    listings = {"policies": _policies, "models": _models, "tasks": _tasks, "experiments": _experiments}
    if kind not in listings:
        raise ConfigError(f"there is no list of {kind!r}; there are {', '.join(KINDS)}.{nearest(kind, KINDS)}")
    return listings[kind]()


def _policies() -> list[tuple[str, str]]:
    import prunekit.policies as policies
    from prunekit.plan import Method
    from prunekit.policy import PruningPolicy

    classes = [getattr(policies, name) for name in policies.__all__]
    return [(c.__name__, _line(c)) for c in classes if inspect.isclass(c) and issubclass(c, (Method, PruningPolicy))]


def _models() -> list[tuple[str, str]]:
    from prunekit.adapter import supported_models

    return [(name, _line(adapter)) for name, adapter in sorted(supported_models().items())]


def _tasks() -> list[tuple[str, str]]:
    from prunekit.evaluation import Task
    from prunekit.evaluation._explain import known_classes

    return [(name, _line(cls)) for name, cls in sorted(known_classes(Task).items())]


def _experiments() -> list[tuple[str, str]]:
    from prunekit.evaluation.config import shipped_experiments

    return [(name, f"prunekit run {name}") for name in shipped_experiments()]


def _line(cls: type) -> str:
    """First sentence of the class's description."""
    text = inspect.cleandoc(cls.__doc__ or "").partition("\n\n")[0]
    return " ".join(text.split())
