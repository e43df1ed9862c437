"""Adapters: what names the parts of a model family, and which one serves which model.

There are prunekit's own, those of installed packages, and those registered by hand.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points

from torch import nn

from prunekit._adapter import ModelAdapter
from prunekit.errors import UnsupportedModelError, nearest

__all__ = ["ModelAdapter", "adapter_for", "register_adapter", "supported_models"]

GROUP = "prunekit.adapters"
_registered: dict[str, type[ModelAdapter]] = {}


def register_adapter(adapter: type[ModelAdapter]) -> type[ModelAdapter]:
    """Serve the families `adapter.model_types` with this adapter from now on, in this process.

    An installed package does the same for everyone by an entry point of the group `prunekit.adapters`. May be used as a
    decorator; a later call for the same family wins, and both win over prunekit's own.

    Raises:
        UnsupportedModelError: the class is no `ModelAdapter`, or names no family.
    """
    if not (isinstance(adapter, type) and issubclass(adapter, ModelAdapter)):
        raise UnsupportedModelError(f"register_adapter({adapter!r}): an adapter is a subclass of ModelAdapter.")
    if not adapter.model_types:
        raise UnsupportedModelError(
            f"{adapter.__name__} serves no family: set model_types, for example model_types = ('my_vlm',)."
        )
    _registered.update(dict.fromkeys(adapter.model_types, adapter))
    return adapter


def supported_models() -> Mapping[str, type[ModelAdapter]]:
    """Adapters by `config.model_type`; families without one are served by `ModelAdapter` where they fit."""
    from prunekit import models  # here, because adapters import the package

    found = {name: adapter for adapter in models.ADAPTERS for name in adapter.model_types}
    for point in entry_points(group=GROUP):
        adapter = point.load()
        found |= dict.fromkeys(adapter.model_types, adapter)
    return found | _registered


def adapter_for(model: nn.Module) -> ModelAdapter:
    """The adapter of a loaded model: its family's own, or the general one for a family that nobody has described.

    Raises:
        UnsupportedModelError: the model is no vision-language model that can be pruned; the message says why.
    """
    known = supported_models()
    config = getattr(model, "config", None)
    name = str(getattr(config, "model_type", None))
    if name in known:
        return known[name](model)
    if config is None or not hasattr(model, "get_decoder"):
        raise UnsupportedModelError(
            f"{type(model).__name__} is no model of transformers; supported are vision-language models such as"
            f" {', '.join(sorted(known))}."
        )
    try:
        return ModelAdapter(model)
    except UnsupportedModelError as error:
        raise UnsupportedModelError(
            f"{error} By an adapter of their own, supported are {', '.join(sorted(known))}.{nearest(name, known)}"
        ) from None
