"""The literature's FLOPs by name, and published figures to their printed digits."""

from __future__ import annotations

from typing import Any

import pytest
from scripts import load
from transformers import LlamaConfig

from prunekit.budget import average_tokens
from prunekit.conventions import convention, conventions, report
from prunekit.costs.closed_form_text import Decoder
from prunekit.errors import BudgetError, ConfigError

published: Any = load("docs/hooks/published.py")


@pytest.mark.parametrize("figure", published.FIGURES, ids=lambda f: f"{f.paper} {f.plan}")
def test_published_figures_to_their_printed_digits(figure: Any) -> None:
    assert figure.recomputed == figure.printed


def test_other_rules_give_other_digits() -> None:
    """The comparison has power: no other rule gives all of VScan's numbers, cut off or rounded."""
    figures = published.FIGURES[:6]
    for rule in conventions():
        for text in (0, 1):
            values = [figure.by(rule.name, text) for figure in figures]
            cut = [f"{int(value * 1000) / 1000:.3f}" for value in values]
            same = (rule.name, text) in {("visual-only", 0), ("visual-only", 1), ("sparsevlm", 0)}
            assert (cut == [figure.printed for figure in figures]) == same, (rule.name, text)
            assert [f"{value:.3f}" for value in values] != [figure.printed for figure in figures]


def test_text_tokens_that_give_the_digits() -> None:
    """What the page says of figures whose source does not say how many text tokens there are."""
    fastv, divprune = published.FIGURES[6:]
    found = [
        [text for text in range(200) if f"{figure.by('fastv', text):.{digits}f}" == figure.printed]
        for figure, digits in ((fastv, 0), (divprune, 1))
    ]
    assert found == [[*range(34, 49)], [44]]


@pytest.mark.parametrize("row", published.LABELS, ids=lambda label: label.what)
def test_tokens_behind_labels(row: Any) -> None:
    assert {label: f"{row.count(label):.0f}" for label in row.rounded} == row.rounded


def test_the_average_of_pyramiddrop() -> None:
    printed, method = published.PYRAMID
    assert f"{average_tokens(method, 576, 32):.0f}" == printed


def test_shares_of_two_stages() -> None:
    assert [row[2] for row in published.stages()] == ["0.370", "0.184", "0.164", "0.109"]
    assert [row[1] for row in published.stages()] == ["216", "108", "96", "64"]


def test_formulas_on_one_layer() -> None:
    """Against the formulas written out; n = 5 visual and 2 text tokens, d = 8, m = 12, k = 4."""
    n, d, m, k = 7, 8, 12, 4
    expected = {
        "fastv": 4 * n * d * d + 2 * n * n * d + 2 * n * d * m,
        "sparsevlm": 4 * n * d * d + 2 * n * n * d + 3 * n * d * m,
        "visual-only": 4 * 5 * d * d + 2 * 25 * d + 3 * 5 * d * m,
        "dycoke": 4 * n * d * d + 2 * n * n * d + 2 * n * d * m
        + 100 * ((4 * d * d + 2 * d * m) + 2 * (d * n + d * 101 / 2)),
        "average-tokens": 5,
        "causal-half": n * (2 * d * d + 2 * d * k) + n * n * d + 3 * n * d * m,
        "full": 2 * (n * (2 * d * d + 2 * d * k) + 2 * n * n * d + 3 * n * d * m),
    }  # fmt: skip
    assert {rule.name: report(rule.name, [5], d, m, text=2, keys=k).total for rule in conventions()} == expected


def test_the_full_count_is_that_of_the_closed_form() -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 2}
    decoder = Decoder.of(LlamaConfig(**sizes, num_hidden_layers=3))
    levels = [36, 36, 9]
    found = report("full", levels, 64, 96, text=11, keys=16)
    assert found.total == 2 * sum(decoder.layer(n + 11) for n in levels)
    assert found.share == found.total / (2 * 3 * decoder.layer(47))


def test_a_report_says_what_its_number_is() -> None:
    said = str(report("vscan", [64] * 32, 4096, 11008, visual=576))
    assert said == "0.416 TFLOPs, 10.9 % (visual-only, which are multiply-adds)"
    assert str(report("prunekit", [576] * 32, 4096, 11008, text=95)) == "8.927 TFLOPs, 100.0 % (full)"
    assert str(report("angelslim", [576, 144], 8, 8)) == "360.0 tokens, 62.5 % (average-tokens)"


def test_names() -> None:
    known = [name for rule in conventions() for name in (rule.name, *rule.aliases)]
    assert len(known) == len(set(known))
    assert all(name in (convention(name).name, *convention(name).aliases) for name in known)
    assert {"fastv", "sparsevlm", "pyramiddrop", "vscan", "visual-only"} <= set(known)
    with pytest.raises(ConfigError, match=r"convention 'fastvv' is unknown; known are .* Did you mean 'fastv'\?"):
        report("fastvv", [1], 1, 1)


@pytest.mark.parametrize(
    ("levels", "sizes", "more"),
    [
        ([], (8, 8), {}),
        ([-1], (8, 8), {}),
        ([1], (0, 8), {}),
        ([1], (8, 8), {"text": -1}),
        ([1], (8, 8), {"keys": 0}),
        ([0], (8, 8), {}),
    ],
)
def test_impossible_shapes(levels: list[int], sizes: tuple[int, int], more: dict[str, int]) -> None:
    with pytest.raises(BudgetError, match="convention 'full'"):
        report("full", levels, *sizes, **more)


def test_the_page_shows_all_of_it() -> None:
    generate = load("docs/hooks/generate.py")
    for part, words in {
        "figures": ["3.817", "20.825", "`visual-only`"],
        "stages": ["0.370", "0.109"],
        "labels": ["188", "206"],
        "rules": ["`dycoke`", "none known to us"],
    }.items():
        table = generate.expand(f"{{{{ published {part} }}}}")
        assert all(word in table for word in words), part
