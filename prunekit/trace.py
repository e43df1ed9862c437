"""What a session records: kept tokens per stage, and whose operators are whose while FLOPs are counted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["TraceRecord", "cost_scope"]


@dataclass(frozen=True)
class TraceRecord:
    """What one stage decided in one prefill.

    Attributes:
        site: where.
        kept: original numbers of the kept visual tokens, ascending, [batch, kept]; -1 fills rows that kept fewer.
        scores: scores by original number, [batch, visual], NaN for tokens that an earlier stage had dropped; or None.
        visual: original number of visual tokens of each row.
    """

    site: str
    kept: Int[Tensor, "batch kept"]
    scores: Float[Tensor, "batch visual"] | None
    visual: tuple[int, ...]


@contextmanager
def cost_scope(name: str) -> Iterator[None]:
    """Name the operators inside for a running `torch.jit` trace or profiler, to tell a policy's own cost apart."""
    state = torch._C._get_tracing_state()
    if state is None:
        with torch.profiler.record_function(name) if torch.autograd._profiler_enabled() else nullcontext():
            yield
        return
    state.push_scope(name)
    try:
        yield
    finally:
        state.pop_scope()
