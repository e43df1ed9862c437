"""What experiments can name: policies, models, tasks and shipped experiments, from the classes themselves."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

from prunekit.errors import ConfigError, nearest

if TYPE_CHECKING:
    from prunekit.adapter import ModelAdapter

__all__ = ["KINDS", "compatible", "entries"]

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
    from prunekit.plugins import available_policies

    return [(name, _line(cls)) for name, cls in available_policies().items()]


def compatible(path: str) -> list[tuple[str, str]]:
    """Name and sites of every policy and method that works on a model, and why the others do not.

    Args:
        path: `tiny`, a local folder, a hub name, or a family (`qwen2_vl`), which stands for a small random model of it.

    Raises:
        ConfigError: it is none of these.
        UnsupportedModelError: the model cannot be pruned.
    """
    from prunekit.compatibility import compatibility
    from prunekit.evaluation.experiment import ModelSpec
    from prunekit.evaluation.loading import model_facts
    from prunekit.models.tiny.builders import BUILDERS, tiny_random

    model = tiny_random(path)[0] if path in BUILDERS else model_facts(ModelSpec(path)).skeleton
    return [
        (name, ", ".join(found.sites) if found.sites else f"no: {found.reason}")
        for name, found in compatibility(model).items()
    ]


def _models() -> list[tuple[str, str]]:
    from prunekit.adapter import supported_models

    families = [(name, _offers(name, adapter)) for name, adapter in sorted(supported_models().items())]
    others = "may work, at input and decoder.<i>: models whose images are tokens among the text of a decoder"
    return [*families, ("(others)", others)]


def _offers(name: str, adapter: type[ModelAdapter]) -> str:
    """Sites, what can be read of the encoder, and kinds of inputs, of the family's tiny random model."""
    from prunekit.models.tiny.builders import BUILDERS, tiny_random

    if name not in BUILDERS:
        return f"by {adapter.__module__}.{adapter.__qualname__}"
    model, make_inputs = tiny_random(name)
    parts = adapter(model)
    offers = ["vision.<i>, input, decoder.<i>" if parts.vision_sites else "input, decoder.<i>"]
    if parts.vision_tower is not None:
        offers.append("encoder attention, [CLS]" if parts.has_cls else "encoder attention")
    offers.append("images, videos" if make_inputs.video is not None or parts.video_ids else "images")
    return "; ".join(offers)


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
