"""`Keep`: how many visual tokens stay."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Literal

from prunekit.errors import BudgetError

__all__ = ["Keep"]


@dataclass(frozen=True)
class Keep:
    """How many visual tokens of a sample stay: `Keep(tokens=64)` or `Keep(ratio=0.25)`.

    A ratio always refers to the ORIGINAL number of visual tokens of the sample, whatever earlier stages left; the
    count is its floor, and at least 1.

    Args:
        tokens: number of tokens.
        ratio: share of the original tokens.
        power: raises the share to this power; 0.5 keeps its square root, half-way to everything on a log scale.
        times: multiplies the share, up to everything.
        per: `sample` spends the budget over all images of a sample; with `image` every image (or video) has it for
            itself.

    Raises:
        BudgetError: neither or both are given, `tokens` < 1, `ratio` outside (0, 1], `power` outside (0, 1], `times`
            < 1, or `per` is neither.
    """

    tokens: int | None = None
    ratio: float | None = None
    power: float = 1.0
    times: float = 1.0
    per: Literal["sample", "image"] = "sample"

    def __post_init__(self) -> None:
        if (self.tokens is None) == (self.ratio is None):
            raise BudgetError(
                f"Keep takes either tokens or ratio, given tokens={self.tokens}, ratio={self.ratio}."
                " For example Keep(tokens=64) or Keep(ratio=0.25)."
            )
        if self.tokens is not None and not (_is(self.tokens, Integral) and self.tokens >= 1):
            raise BudgetError(f"Keep(tokens={self.tokens!r}): must be a whole number of at least 1.")
        if self.ratio is not None and not (_is(self.ratio, Real) and 0 < self.ratio <= 1):
            raise BudgetError(f"Keep(ratio={self.ratio!r}): must be above 0 and at most 1.")
        if not 0 < self.power <= 1:
            raise BudgetError(f"Keep(power={self.power!r}): must be above 0 and at most 1.")
        if not self.times >= 1:
            raise BudgetError(f"Keep(times={self.times!r}): must be at least 1.")
        if self.per not in ("sample", "image"):
            raise BudgetError(f"Keep(per={self.per!r}): allowed are 'sample' and 'image'.")

    @classmethod
    def of(cls, amount: Keep | int | float) -> Keep:
        """Read the short form used by methods: an int is a number of tokens, a float is a ratio."""
        if isinstance(amount, Keep):
            return amount
        if not _is(amount, Real):
            raise BudgetError(f"keep={amount!r}: must be a number of tokens (int), a ratio (float) or a Keep.")
        return cls(tokens=int(amount)) if _is(amount, Integral) else cls(ratio=amount)

    def count(self, total: int) -> int:
        """Number of tokens to keep of `total` original ones; 0 for a sample without visual tokens.

        Raises:
            BudgetError: more tokens are asked for than there are.
        """
        if total == 0:
            return 0
        if self.tokens is not None and self.tokens > total:
            raise BudgetError(
                f"Keep(tokens={self.tokens}): a sample has only {total} visual tokens; allowed are 1 to {total}."
            )
        if self.tokens is not None and self.power == self.times == 1:
            return self.tokens
        share: float = self.ratio if self.tokens is None else self.tokens / total  # type: ignore[assignment]
        # A share that was computed as k / total must give k back: floor after removing the rounding of the product.
        return min(total, max(1, math.floor(math.pow(share, self.power) * self.times * total * (1 + 1e-12))))

    def __str__(self) -> str:
        share = f"{self.tokens} tokens" if self.tokens is not None else f"ratio {self.ratio:g}"
        share = share if self.power == 1 else f"({share}) to the power {self.power:g}"
        share = share if self.times == 1 else f"{self.times:g} times {share}"
        return share if self.per == "sample" else f"{share} per image"


def _is(value: object, kind: type) -> bool:
    """Whether a value is a number of this kind; `True` is none."""
    return isinstance(value, kind) and not isinstance(value, bool)
