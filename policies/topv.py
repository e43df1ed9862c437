"""TopV: one optimal transport at an early decoder layer."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.keep import Keep
from prunekit.plan import Method, Stage
from prunekit.policies.optimal_transport import OptimalTransport

__all__ = ["TopV"]


@dataclass(frozen=True)
class TopV(Method):
    """TopV (Yang et al., CVPR 2025, arXiv 2503.18278): token pruning as an optimisation problem.

    Before decoder layer L, once at prefill, keep the visual tokens that contribute most to an optimal transport whose
    cost joins similarity of features, distance in the image and distance from its centre, and recover some of the
    dropped ones evenly; see `OptimalTransport`. No attention is read.

    Args:
        keep: visual tokens that stay: a share of the original ones (float) or a number (int).
        layer: L, 2 as published.
        recover: share of `keep` that is recovered evenly.

    Differs from the reference: no code of the authors is known to us. The paper says which terms the cost has; how
    they are weighted, the regularisation, the number of iterations, what a token's contribution is and how many are
    recovered are prunekit's choices. Parity is unproven.
    """

    keep: int | float | Keep = 0.25
    layer: int = 2
    recover: float = 0.1

    reference = OptimalTransport.reference

    def stages(self, depth: int) -> tuple[Stage, ...]:
        return (Stage(f"decoder.{self.layer}", OptimalTransport(recover=self.recover), Keep.of(self.keep)),)
