"""Which policies and methods work on a model: each is attached to it, and what a session would refuse is told."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, is_dataclass

from torch import nn

from prunekit.adapter import ModelAdapter, adapter_for
from prunekit.errors import PrunekitError
from prunekit.keep import Keep
from prunekit.plan import Method, Stage
from prunekit.plugins import available_policies
from prunekit.policy import PruningPolicy
from prunekit.session import prune

__all__ = ["Compatible", "buildable", "compatibility"]


@dataclass(frozen=True)
class Compatible:
    """What a model offers a policy with its default arguments, or a method as its `example` says.

    Attributes:
        sites: of a method, its stages on this model; of a policy, the sites where it works, one of each kind. Empty
            where it does not work.
        reason: why it does not, as the session says it.
    """

    sites: tuple[str, ...]
    reason: str = ""


def buildable(cls: type) -> bool:
    """Whether a class can be made without arguments; combinators cannot, they compose others."""
    if not is_dataclass(cls):
        return True
    return all(field.default is not MISSING or field.default_factory is not MISSING for field in fields(cls))


def compatibility(
    model: nn.Module, policies: Mapping[str, type[PruningPolicy] | type[Method]] | None = None
) -> dict[str, Compatible]:
    """Try every policy and method on a model; nothing is run, so that the meta device will do.

    Args:
        model: a vision-language model.
        policies: classes by name; all that are available by default. Those that need arguments are left out.

    Raises:
        UnsupportedModelError: the model cannot be pruned at all.
    """
    adapter = adapter_for(model)
    named = available_policies() if policies is None else policies
    return {name: _try(model, adapter, cls) for name, cls in named.items() if buildable(cls)}


def _try(model: nn.Module, adapter: ModelAdapter, cls: type[PruningPolicy] | type[Method]) -> Compatible:
    if issubclass(cls, Method):
        try:
            return Compatible(tuple(stage.site for stage in prune(model, cls.example(adapter.shape)).plan.stages))
        except PrunekitError as error:
            return Compatible((), str(error))
    found, reason = [], ""
    for site in _places(adapter):
        policy = cls()
        try:
            prune(model, Stage(site, policy, Keep(ratio=0.5) if policy.needs_keep else None))
        except PrunekitError as error:
            if site.partition(".")[0] in policy.sites:
                reason = reason or str(error)
        else:
            found.append(site)
    return Compatible(tuple(found), "" if found else reason or f"its sites are {', '.join(cls.sites)}")


def _places(adapter: ModelAdapter) -> list[str]:
    """One site of each kind that a model offers."""
    last = [f"vision.{adapter.vision_sites - 1}"] if adapter.vision_sites else []
    return [*last, *["connector"] * adapter.connector_site, "input", f"decoder.{max(1, adapter.depth // 2)}"]
