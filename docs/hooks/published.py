"""Published costs and token counts, recomputed by the rule of their paper, and beside them by prunekit's.

Numbers in quotes are as printed; all others are computed when the page is made.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prunekit.budget import average_tokens, tokens_per_layer
from prunekit.conventions import conventions, report
from prunekit.plan import Method
from prunekit.policies import FastV, PyramidDrop, SparseVLM

LAYERS, WIDTH, MLP = 32, 4096, 11008
"""LLaVA-1.5-7B and LLaVA-NeXT-7B: the language model is a Llama or Vicuna of this shape."""
VISUAL, TILES = 576, 2880
TEXT = 95
"""Text and system tokens of the prompt that the page on FLOPs counts."""


@dataclass(frozen=True)
class Figure:
    """A published cost.

    Attributes:
        paper: who prints it.
        plan: what it is the cost of, in words.
        printed: the number as printed.
        rule: the convention that gives it.
        levels: visual tokens that enter each layer.
        dense: visual tokens without pruning.
        text: text tokens in n. Where the source does not say how many, those that give the printed digits.
        share: whether it is a share of the dense model, in percent; else it is in 1e12.
        cut: whether the paper cuts digits off instead of rounding.
        stated: whether the source says how many text tokens there are, or that there are none.
    """

    paper: str
    plan: str
    printed: str
    rule: str
    levels: tuple[int, ...]
    dense: int
    text: int = 0
    share: bool = False
    cut: bool = False
    stated: bool = True

    def by(self, rule: str, text: int) -> float:
        """The number by some rule."""
        found = report(rule, self.levels, WIDTH, MLP, text=text, visual=self.dense)
        return 100 * found.share if self.share else found.total / 1e12

    @property
    def recomputed(self) -> str:
        """By the paper's own rule, with as many digits as it prints."""
        digits = len(self.printed.partition(".")[2])
        value = self.by(self.rule, self.text)
        return f"{math.floor(value * 10**digits) / 10**digits if self.cut else value:.{digits}f}"


def _flat(tokens: int) -> tuple[int, ...]:
    return (tokens,) * LAYERS


def _vscan(tokens: int, printed: str, dense: int = VISUAL) -> Figure:
    return Figure("VScan", f"{tokens} of {dense}", printed, "visual-only", _flat(tokens), dense, cut=True)


FIGURES = (
    _vscan(576, "3.817"),
    _vscan(192, "1.253"),
    _vscan(128, "0.833"),
    _vscan(64, "0.415"),
    _vscan(2880, "20.825", TILES),
    _vscan(320, "2.099", TILES),
    Figure(
        "FastV (README)",
        "K = 3, R = 50 %",
        "57",
        "fastv",
        tokens_per_layer(FastV(keep=0.5, layer=3), VISUAL, LAYERS),
        VISUAL,
        text=41,
        share=True,
        stated=False,
    ),
    Figure("DivPrune", "9.8 % of tokens", "15.7", "fastv", _flat(56), VISUAL, text=44, share=True, stated=False),
)

TWO_STAGES = (("0.370", 288, 144), ("0.184", 144, 72), ("0.164", 144, 48), ("0.109", 96, 32))
"""Share of the dense cost with n1 tokens up to layer 16 and n2 from there on."""


@dataclass(frozen=True)
class Label:
    """Visual tokens per layer behind the labels of a paper, rounded."""

    what: str
    rounded: dict[int, str]
    count: Callable[[int], float]


def _sparse(version: str) -> Callable[[int], float]:
    return lambda label: average_tokens(SparseVLM(retain=label, version=version), VISUAL, LAYERS)  # type: ignore[arg-type]


LISTS = {192: (300, 200, 110), 128: (303, 110, 36), 96: (238, 48, 26), 64: (66, 30, 17)}


def _counter(label: int, first: int = 2) -> float:
    """SparseVLM's lists over layers, the first of them without pruning."""
    one, two, three = LISTS[label]
    return (first * VISUAL + 4 * one + 9 * two + (LAYERS - first - 13) * three) / LAYERS


def _fastv(layer: int) -> Callable[[int], float]:
    """What must be kept from a layer on, so that the average is the label."""
    return lambda label: (LAYERS * label - layer * VISUAL) / (LAYERS - layer)


LABELS = (
    Label("SparseVLM, as its code counts", {192: "188", 128: "124", 96: "93", 64: "62"}, _counter),
    Label(
        "SparseVLM, that enter layers, recycled ones apart",
        {192: "203", 128: "141", 96: "110", 64: "79"},
        lambda label: _counter(label, first=3),
    ),
    Label(
        "SparseVLM, that enter layers, recycled ones too",
        {192: "206", 128: "145", 96: "114", 64: "82"},
        _sparse("v1"),
    ),
    Label("FastV, K = 2: kept from there on", {192: "166", 128: "98", 64: "30"}, _fastv(2)),
    Label("FastV, K = 3: kept from there on", {192: "152", 128: "82", 64: "11"}, _fastv(3)),
)

PYRAMID: tuple[str, Method] = ("270", PyramidDrop())
"""What VScan reports as PyramidDrop's average with its published layers and shares."""


def figures() -> list[list[str]]:
    """A row for each published figure."""
    rows = []
    for each in FIGURES:
        unit, ours = (" %", each.by("full", TEXT)) if each.share else ("", each.by("full", TEXT))
        text = "none" if not each.text else f"{each.text}" + ("" if each.stated else ", not stated")
        rows.append(
            [
                each.paper,
                each.plan,
                f"{each.printed}{unit}",
                f"{each.recomputed}{unit}",
                f"`{each.rule}`",
                text,
                f"{ours:.1f} %" if each.share else f"{ours:.3f}",
            ]
        )
    return rows


def stages() -> list[list[str]]:
    """A row for each pair of levels."""
    rows = []
    for printed, first, second in TWO_STAGES:
        levels = _levels(first, second)
        alone, full = (
            report(rule, levels, WIDTH, MLP, text=text, visual=VISUAL).share
            for rule, text in (("visual-only", 0), ("full", TEXT))
        )
        assert f"{alone:.3f}" == printed
        rows.append([f"{first}, {second}", f"{sum(levels) / LAYERS:g}", printed, f"{full:.3f}"])
    return rows


def _levels(first: int, second: int) -> Sequence[int]:
    return (first,) * (LAYERS // 2) + (second,) * (LAYERS - LAYERS // 2)


def labels() -> list[list[str]]:
    """A row for each way to count."""
    return [[each.what, *(each.rounded.get(label, "") for label in (192, 128, 96, 64))] for each in LABELS]


def rules() -> list[list[str]]:
    """A row for each convention."""
    return [
        [
            ", ".join(f"`{name}`" for name in (each.name, *each.aliases)),
            f"`{each.formula}`",
            each.unit,
            ", ".join(each.papers) or "none known to us",
            each.leaves_out,
        ]
        for each in conventions()
    ]
