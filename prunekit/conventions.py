"""What papers call the FLOPs of pruning: their formulas by name, applied to any model and plan.

A number can be compared with a published one only by the rule that the published one was made by. n is the number of
tokens that enter a layer, d the width, m the width of the MLP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from prunekit.errors import BudgetError, ConfigError, nearest

__all__ = ["Convention", "Report", "convention", "conventions", "report"]

Layer = Callable[[int, int, int, int], int]
"""Tokens n, width d, MLP width m, key and value width k, to the cost of one layer."""


@dataclass(frozen=True)
class Convention:
    """One rule for the cost of a decoder's prefill.

    Attributes:
        name: of the convention.
        formula: the cost of one layer, as text.
        layer: the same as a function of n, d, m and k (width of keys and values).
        papers: who uses it. Empty where none is known to us.
        text: whether n contains the text tokens.
        unit: what one is: a multiply-add, an operation (a multiply-add is two of them), or a token.
        printed: what the papers call the unit.
        leaves_out: what the rule does not count.
        generated: tokens of the answer whose decoding is counted as well.
        aliases: other names.
    """

    name: str
    formula: str
    layer: Layer
    papers: tuple[str, ...]
    text: bool = True
    unit: Literal["multiply-adds", "operations", "tokens"] = "multiply-adds"
    printed: str = "FLOPs"
    leaves_out: str = ""
    generated: int = 0
    aliases: tuple[str, ...] = ()

    def total(self, lengths: Sequence[int], hidden: int, intermediate: int, keys: int) -> float:
        """The cost of layers with these numbers of tokens: a prefill, and the answer where it is counted."""
        prefill: float = sum(self.layer(n, hidden, intermediate, keys) for n in lengths)
        if not self.generated:
            return prefill
        step = 4 * hidden**2 + 2 * hidden * intermediate
        return prefill + self.generated * sum(step + 2 * hidden * n + hidden * (self.generated + 1) for n in lengths)


@dataclass(frozen=True)
class Report:
    """The cost of a plan by a convention.

    Attributes:
        convention: the rule.
        total: the cost, in the convention's unit.
        dense: the same without pruning.
    """

    convention: Convention
    total: float
    dense: float

    @property
    def share(self) -> float:
        """Cost as a share of the dense model's."""
        return self.total / self.dense

    def __str__(self) -> str:
        rule, amount = self.convention, self.total
        if rule.unit == "tokens":
            return f"{amount:,.1f} tokens, {100 * self.share:.1f} % ({rule.name})"
        unit = "" if rule.printed == "FLOPs" and rule.unit == "operations" else f", which are {rule.unit}"
        return f"{amount / 1e12:.3f} T{rule.printed}, {100 * self.share:.1f} % ({rule.name}{unit})"


_OTHERS = "vision encoder, projector, output head, the scorer, grouped-query attention"


def _of_two_matrices(n: int, d: int, m: int, k: int) -> int:
    return 4 * n * d * d + 2 * n * n * d + 2 * n * d * m


def _of_three_matrices(n: int, d: int, m: int, k: int) -> int:
    return 4 * n * d * d + 2 * n * n * d + 3 * n * d * m


_ALL = (
    Convention(
        "fastv",
        "4nd² + 2n²d + 2ndm",
        _of_two_matrices,
        ("FastV", "DivPrune"),
        leaves_out=f"{_OTHERS}, one of the three matrices of a gated MLP, decoding",
        aliases=("divprune",),
    ),
    Convention(
        "sparsevlm",
        "4nd² + 2n²d + 3ndm",
        _of_three_matrices,
        ("PyramidDrop", "SparseVLM"),
        leaves_out=f"{_OTHERS}, decoding",
        aliases=("pyramiddrop",),
    ),
    Convention(
        "visual-only",
        "4nd² + 2n²d + 3ndm, n without text",
        _of_three_matrices,
        ("VScan",),
        text=False,
        leaves_out=f"all text tokens, {_OTHERS}, decoding",
        aliases=("vscan",),
    ),
    Convention(
        "dycoke",
        "4nd² + 2n²d + 2ndm, and R (4d² + 2dm + 2 (dn + d (R + 1) / 2)) for R = 100 tokens of an answer",
        _of_two_matrices,
        ("DyCoke", "HoliTom"),
        leaves_out=f"{_OTHERS}, one of the three matrices of a gated MLP",
        generated=100,
        aliases=("holitom",),
    ),
    Convention(
        "average-tokens",
        "n, without text",
        lambda n, d, m, k: n,
        ("AngelSlim",),
        text=False,
        unit="tokens",
        printed="kept ratio",
        leaves_out="attention's square, text tokens, and everything but the number of tokens",
        aliases=("angelslim",),
    ),
    Convention(
        "causal-half",
        "n (2d² + 2dk) + n²d + 3ndm",
        lambda n, d, m, k: n * (2 * d * d + 2 * d * k) + n * n * d + 3 * n * d * m,
        (),
        leaves_out="vision encoder, projector, output head, the scorer, half of attention, decoding",
    ),
    Convention(
        "full",
        "2 (n (2d² + 2dk) + 2n²d + 3ndm)",
        lambda n, d, m, k: 2 * (n * (2 * d * d + 2 * d * k) + 2 * n * n * d + 3 * n * d * m),
        ("prunekit",),
        unit="operations",
        leaves_out="vision encoder, projector, output head and scorer, which prunekit counts apart; decoding",
        aliases=("prunekit",),
    ),
)


def conventions() -> tuple[Convention, ...]:
    """All conventions that prunekit knows."""
    return _ALL


def convention(name: str) -> Convention:
    """The convention of a name or alias.

    Raises:
        ConfigError: there is none; the message has the nearest name.
    """
    known = {each: rule for rule in _ALL for each in (rule.name, *rule.aliases)}
    if name not in known:
        raise ConfigError(f"convention {name!r} is unknown; known are {', '.join(known)}.{nearest(name, known)}")
    return known[name]


def report(
    name: str,
    tokens_per_layer: Sequence[int],
    hidden: int,
    intermediate: int,
    *,
    text: int = 0,
    keys: int | None = None,
    visual: int | None = None,
) -> Report:
    """What a paper with this convention would print.

    Args:
        name: of the convention, or a paper's that uses it.
        tokens_per_layer: visual tokens that enter each decoder layer.
        hidden: width d of the language model.
        intermediate: width m of its MLP.
        text: all other tokens; conventions without text leave them out.
        keys: width k of all key heads; by default d, as without grouped-query attention.
        visual: visual tokens of the dense model; by default those of the first layer.

    Raises:
        ConfigError: no such convention.
        BudgetError: no layers, a negative number of tokens, or a width below 1.
    """
    rule = convention(name)
    levels = list(tokens_per_layer)
    whole = (levels[0] if levels else 0) if visual is None else visual
    if not levels or min(*levels, whole, text) < 0 or min(hidden, intermediate, hidden if keys is None else keys) < 1:
        raise BudgetError(
            f"convention {name!r}: needs at least one layer, tokens of at least 0 and widths of at least 1; given"
            f" tokens_per_layer={levels}, visual={whole}, text={text}, hidden={hidden}, intermediate={intermediate},"
            f" keys={keys}."
        )
    if whole + text * rule.text == 0:
        raise BudgetError(f"convention {name!r}: the dense model has no tokens that count.")
    more = text if rule.text else 0
    costs = (
        rule.total([n + more for n in lengths], hidden, intermediate, hidden if keys is None else keys)
        for lengths in (levels, [whole] * len(levels))
    )
    total, dense = costs
    scale = len(levels) if rule.unit == "tokens" else 1
    return Report(rule, total / scale, dense / scale)
