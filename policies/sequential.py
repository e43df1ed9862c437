"""Sequential: methods and stages, one after the other."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.errors import PolicyError
from prunekit.plan import Method, Shape, Stage

__all__ = ["Sequential"]


@dataclass(frozen=True)
class Sequential(Method):
    """Several methods and stages under one name, in the order of the forward pass.

    Args:
        items: methods and stages; two at one site are refused when the plan is made.
    """

    items: list[Method | Stage]

    def __post_init__(self) -> None:
        for item in self.items:
            if not isinstance(item, (Method, Stage)):
                raise PolicyError(f"Sequential joins methods and stages; {item!r} is neither.")

    def stages_of(self, shape: Shape) -> tuple[Stage, ...]:
        parts = [(item,) if isinstance(item, Stage) else item.stages_of(shape) for item in self.items]
        return tuple(stage for part in parts for stage in part)
