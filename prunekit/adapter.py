"""Adapters: what names the parts of a model family, and which one serves which model.

There are prunekit's own, those of installed packages, and those registered by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points

from torch import nn

from prunekit._adapter import ModelAdapter
from prunekit.errors import UnsupportedModelError, nearest

__all__ = ["ModelAdapter", "adapter_for", "register_adapter", "supported_models"]

GROUP = "prunekit.adapters"
_registered: dict[str, type[ModelAdapter]] = {}


def register_adapter(adapter: type[ModelAdapter]) -> type[ModelAdapter]:
    """Serve the families `adapter.model_types` with this adapter from now on, in this process.

    An installed package does the same for everyone by an entry point of the group `prunekit.adapters`, named after the
    family. May be used as a decorator; a later call for the same family wins, and both win over prunekit's own.

    Raises:
        UnsupportedModelError: the class is no `ModelAdapter`, or names no family.
    """
    _check(adapter, f"register_adapter({adapter!r})")
    _registered.update(dict.fromkeys(adapter.model_types, adapter))
    return adapter


def _check(adapter: object, who: str) -> None:
    if not (isinstance(adapter, type) and issubclass(adapter, ModelAdapter)):
        raise UnsupportedModelError(f"{who}: an adapter is a subclass of ModelAdapter, given {adapter!r}.")
    names = adapter.model_types
    if not (isinstance(names, tuple) and names and all(isinstance(name, str) and name for name in names)):
        raise UnsupportedModelError(
            f"{who}: {adapter.__name__}.model_types is {names!r}; it must be a tuple of the values of"
            " config.model_type that the adapter serves, for example ('my_vlm',)."
        )


def supported_models() -> Mapping[str, type[ModelAdapter]]:
    """Adapters by `config.model_type`; families without one are served by `ModelAdapter` where they fit.

    Entry points that cannot be loaded are left out.
    """
    return _known()[0]


def _known() -> tuple[dict[str, type[ModelAdapter]], dict[str, UnsupportedModelError]]:
    """Adapters by family; and for families whose installed adapter cannot be loaded, why."""
    from prunekit import models  # here, because adapters import the package

    found = {name: adapter for adapter in models.ADAPTERS for name in adapter.model_types}
    broken = {}
    for point in entry_points(group=GROUP):
        try:
            adapter = point.load()
            _check(adapter, f"entry point {point.name} = {point.value}")
        except Exception as error:  # of another package: whatever it is, it concerns that package's family alone
            broken[point.name] = _unusable(point, error)
        else:
            found |= dict.fromkeys(adapter.model_types, adapter)
    broken = {name: error for name, error in broken.items() if name not in _registered}
    return found | _registered, broken


def _unusable(point: EntryPoint, error: Exception) -> UnsupportedModelError:
    owner = f"package {point.dist.name} {point.dist.version}" if point.dist is not None else "an installed package"
    reason = UnsupportedModelError(
        f"The adapter of {point.name!r} comes from {owner} (entry point {point.value} of the group {GROUP}), which"
        f" cannot be loaded: {type(error).__name__}: {error}. Repair or uninstall that package, or register another"
        " adapter with prunekit.register_adapter."
    )
    reason.__cause__ = error
    return reason


def adapter_for(model: nn.Module) -> ModelAdapter:
    """The adapter of a loaded model: its family's own, or the general one for a family that nobody has described.

    Raises:
        UnsupportedModelError: the model is no vision-language model that can be pruned; the message says why.
    """
    known, broken = _known()
    config = getattr(model, "config", None)
    name = str(getattr(config, "model_type", None))
    if config is None or not hasattr(model, "get_decoder"):
        given = f"the class {model.__name__}" if isinstance(model, type) else type(model).__name__
        raise UnsupportedModelError(
            f"{given} is no model of transformers; supported are vision-language models such as"
            f" {', '.join(sorted(known))}."
        )
    if name in broken:
        raise broken[name]
    if name in known:
        adapter = known[name](model)
        adapter.check_paths()
        return adapter
    try:
        return ModelAdapter(model)
    except UnsupportedModelError as error:
        text = hasattr(model, "lm_head") and not hasattr(config, "vision_config")
        hint = nearest(name, known) if text else ""  # a text model may have been loaded by mistake
        raise UnsupportedModelError(
            f"{error} Decoder-only models whose images are tokens among their text can be pruned; by an adapter of"
            f" their own, supported are {', '.join(sorted(known))}.{hint}"
        ) from None
