"""The second stage of VScan."""

from __future__ import annotations

from typing import Any

from replays.common import Case
from replays.pyramiddrop import UNUSED, replayed

from prunekit.plan import Shape
from prunekit.policies.vscan import VScan

__all__ = ["UNUSED", "replay"]


def replay(case: Case) -> dict[str, Any]:
    return replayed(case, VScan().stages_of(Shape(32, 24, 22))[1].policy)
