"""`Cost`: multiply-adds by part, as the trace and the closed form both answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Cost"]


@dataclass(frozen=True)
class Cost:
    """Multiply-adds of one prefill of a batch.

    Attributes:
        macs: by part: `vision` (encoder, with layers whose output nobody uses), `projector` (and whatever else lies
            between encoder and language model), `scorer` (the policies' own work), `prefill` (the language model),
            `lm_head`.
        prefill_per_layer: the decoder layers, in order, without what a policy reads there.
        scorers: the scorer's part by scope: the site of a stage, or the layer whose attention rows it reads.
        visual_tokens_per_layer: visual tokens that enter each decoder layer, summed over the batch.
        uncounted: operators without a formula here, and how often they ran.
    """

    macs: dict[str, int]
    prefill_per_layer: tuple[int, ...]
    scorers: dict[str, int]
    visual_tokens_per_layer: tuple[int, ...]
    uncounted: dict[str, int] = field(default_factory=dict)

    @property
    def total_macs(self) -> int:
        """Multiply-adds of all parts."""
        return sum(self.macs.values())

    @property
    def flops(self) -> int:
        """Floating-point operations: a multiply-add is two."""
        return 2 * self.total_macs

    def to_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        lists = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return lists | {"total_macs": self.total_macs, "flops": self.flops}
