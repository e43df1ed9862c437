"""Accuracies with intervals that know that questions about one image are not independent.

All intervals are 95 % percentile intervals of a bootstrap that resamples groups (scenes, images) with all their
samples. Every method of a run is resampled with the same weights, so a difference between two methods is paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Comparison", "Resampler"]

LEVEL = 0.95


@dataclass(frozen=True)
class Comparison:
    """A method against another on the same samples.

    Attributes:
        difference: accuracy of the method minus that of the other.
        interval: 95 % interval of the difference.
        lost: samples that only the other answers right.
        gained: samples that only the method answers right.
    """

    difference: float
    interval: tuple[float, float]
    lost: int
    gained: int


class Resampler:
    """Bootstrap weights for one set of samples, used by all methods.

    Args:
        groups: the group of each sample.
        seed: of the resampling; the same seed gives the same intervals.
        resamples: number of bootstrap resamples.
    """

    def __init__(self, groups: Sequence[str], seed: int = 0, resamples: int = 2000) -> None:
        names, self._group = np.unique(np.asarray(groups), return_inverse=True)
        self._count = len(names)
        rng = np.random.default_rng(seed)
        shares = np.full(self._count, 1 / self._count)
        self._weights = rng.multinomial(self._count, shares, size=resamples)  # [resamples, groups]

    def interval(self, correct: NDArray[np.bool_], subset: NDArray[np.bool_] | None = None) -> tuple[float, float]:
        """Interval of the accuracy, of all samples or of a subset."""
        chosen = np.ones(len(correct), bool) if subset is None else subset
        return self._quantiles(self._means(correct.astype(float), chosen))

    def compare(self, correct: NDArray[np.bool_], other: NDArray[np.bool_]) -> Comparison:
        """Paired comparison of two methods, both in the order of the samples."""
        difference = correct.astype(float) - other.astype(float)
        means = self._means(difference, np.ones(len(correct), bool))
        return Comparison(
            difference=float(difference.mean()),
            interval=self._quantiles(means),
            lost=int((other & ~correct).sum()),
            gained=int((correct & ~other).sum()),
        )

    def _means(self, values: NDArray[np.float64], chosen: NDArray[np.bool_]) -> NDArray[np.float64]:
        total = np.bincount(self._group, values * chosen, minlength=self._count)  # [groups]
        count = np.bincount(self._group, chosen.astype(float), minlength=self._count)
        sampled = self._weights @ count
        return (self._weights @ total)[sampled > 0] / sampled[sampled > 0]  # [resamples]

    @staticmethod
    def _quantiles(means: NDArray[np.float64]) -> tuple[float, float]:
        low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return float(low), float(high)
