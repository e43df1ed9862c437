"""Policies and methods by name: prunekit's own, and those of installed packages."""

from __future__ import annotations

import warnings
from importlib.metadata import EntryPoint, entry_points

from prunekit.errors import PruningWarning
from prunekit.plan import Method
from prunekit.policy import PruningPolicy

__all__ = ["GROUP", "available_policies"]

GROUP = "prunekit.policies"


def available_policies() -> dict[str, type[PruningPolicy] | type[Method]]:
    """Every policy and method that can be named: prunekit's own, then those of the entry points `prunekit.policies`.

    An installed package offers its own by an entry point named after the class. Own names win; what cannot be loaded
    is left out with a `PruningWarning`.
    """
    import prunekit.policies as own

    found = {name: getattr(own, name) for name in own.__all__}
    for point in entry_points(group=GROUP):
        offered = _load(point)
        if offered is not None:
            found.setdefault(point.name, offered)
    return found


def _load(point: EntryPoint) -> type[PruningPolicy] | type[Method] | None:
    try:
        cls = point.load()
    except Exception as error:  # of another package: whatever it is, it concerns that policy alone
        why = f"{type(error).__name__}: {error}"
    else:
        if isinstance(cls, type) and issubclass(cls, (PruningPolicy, Method)):
            return cls
        why = "it is neither a PruningPolicy nor a Method"
    owner = f"package {point.dist.name}" if point.dist is not None else "an installed package"
    warnings.warn(
        f"The policy {point.name!r} of {owner} (entry point {point.value} of the group {GROUP}) is left out: {why}",
        PruningWarning,
        stacklevel=2,
    )
    return None
