"""Mistakes of users and of policies: each error has a name and says what was given, what is allowed, what is near."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from catalogue import subject
from transformers import LlamaConfig, LlamaForCausalLM

from prunekit import Keep, Needs, PruningPolicy, Rows, ScoringPolicy, Selection, Stage, VisualTokens, prune
from prunekit.errors import (
    BudgetError,
    NeedsError,
    PolicyError,
    PrunekitError,
    ScoresError,
    SiteError,
    UnsupportedModelError,
)
from prunekit.policies import STAR, CrossAttention, FasterVLM, FastV, Random, SelfAttention

HALF = Keep(ratio=0.5)
TOKENS = 36  # of the tiny model's image


def at(site: str, keep: Keep | None = HALF, policy: Any = None) -> Stage:
    return Stage(site, policy or Random(), keep)


def run(*items: Any, **kwargs: Any) -> None:
    model = subject("llava", "sdpa")
    with torch.no_grad(), prune(model.model, *items, **kwargs):
        model.model(**model.make_inputs())


MISTAKES: dict[str, tuple[Callable[[], Any], type[PrunekitError], str]] = {
    "keep 0 tokens": (lambda: Keep(tokens=0), BudgetError, r"tokens=0.*at least 1"),
    "keep -3 tokens": (lambda: Keep(tokens=-3), BudgetError, r"tokens=-3.*at least 1"),
    "keep 2.5 tokens": (lambda: Keep(tokens=2.5), BudgetError, r"2\.5.*whole number"),  # type: ignore[arg-type]
    "keep a word": (lambda: Keep(tokens="many"), BudgetError, r"many"),  # type: ignore[arg-type]
    "keep a word's share": (lambda: Keep(ratio="half"), BudgetError, r"half"),  # type: ignore[arg-type]
    "ratio 0": (lambda: Keep(ratio=0.0), BudgetError, r"ratio=0\.0.*above 0.*at most 1"),
    "ratio 1.5": (lambda: Keep(ratio=1.5), BudgetError, r"ratio=1\.5.*at most 1"),
    "ratio nan": (lambda: Keep(ratio=float("nan")), BudgetError, r"nan"),
    "both": (lambda: Keep(tokens=3, ratio=0.5), BudgetError, r"tokens=3, ratio=0\.5"),
    "neither": (lambda: Keep(), BudgetError, r"either tokens or ratio"),
    "short form": (lambda: Keep.of("half"), BudgetError, r"'half'"),  # type: ignore[arg-type]
    "short form true": (lambda: Keep.of(True), BudgetError, r"True"),
    "more than there are": (lambda: run(at("input", Keep(tokens=37))), BudgetError, rf"37.*{TOKENS}"),
    "more in the decoder": (lambda: run(at("decoder.2", Keep(tokens=99))), BudgetError, rf"99.*{TOKENS}"),
    "more in the encoder": (lambda: run(at("vision.1", Keep(tokens=99))), BudgetError, rf"99.*{TOKENS}"),
    "more than is left": (
        lambda: run(at("input", Keep(ratio=0.25)), at("decoder.2", HALF)),
        BudgetError,
        r"decoder\.2.*ratio 0\.5.*input.*ratio 0\.25",
    ),
    "more than is left, mixed": (
        lambda: run(at("input", Keep(ratio=0.25)), at("decoder.2", Keep(tokens=20))),
        BudgetError,
        r"decoder\.2.*20.*9",
    ),
    "no budget": (lambda: at("input", None), BudgetError, r"Random needs a budget"),
    "decoder.0": (lambda: at("decoder.0"), SiteError, r"decoder\.0.*'input'"),
    "beyond the decoder": (lambda: run(at("decoder.4")), SiteError, r"decoder\.4.*4 layers.*decoder\.1.*decoder\.3"),
    "beyond the encoder": (lambda: run(at("vision.9")), SiteError, r"vision\.9.*vision\.0.*vision\.2"),
    "after the features": (lambda: run(at("vision.3")), SiteError, r"vision\.3.*vision\.0.*vision\.2"),
    "misspelt": (lambda: at("decodr.2"), SiteError, r"decodr\.2.*Did you mean 'decoder\.2'\?"),
    "misspelt vision": (lambda: at("visoin.1"), SiteError, r"visoin\.1.*Did you mean 'vision\.1'\?"),
    "misspelt input": (lambda: at("inptu"), SiteError, r"inptu.*Did you mean 'input'\?"),
    "negative": (lambda: at("decoder.-1"), SiteError, r"decoder\.-1.*decoder\.<i>"),
    "no number": (lambda: at("decoder"), SiteError, r"'decoder'.*decoder\.<i>"),
    "a number": (lambda: at(2), SiteError, r"2 is no site"),  # type: ignore[arg-type]
    "empty": (lambda: at(""), SiteError, r"'' is no site"),
    "out of order": (lambda: run(at("decoder.2"), at("input")), SiteError, r"input.*after.*decoder\.2.*order"),
    "out of order, layers": (lambda: run(at("decoder.3"), at("decoder.1")), SiteError, r"decoder\.1.*decoder\.3"),
    "same site": (lambda: run(at("input"), at("input")), SiteError, r"[Tt]wo stages at 'input'"),
    "same site by a method": (
        lambda: run(STAR(keep=0.25), at("decoder.2")),
        SiteError,
        r"[Tt]wo stages at 'decoder\.2'",
    ),
    "no stage": (lambda: run(), SiteError, r"at least one stage"),
    "a bare policy": (lambda: run(Random()), PolicyError, r"neither a Stage nor a Method.*Stage\('input'"),
    "a class": (lambda: at("input", policy=SelfAttention), PolicyError, r"instance.*class SelfAttention"),
    "no policy": (lambda: Stage("input", "random", HALF), PolicyError, r"'random'"),  # type: ignore[arg-type]
    "text at the input": (lambda: run(at("input", policy=CrossAttention())), PrunekitError, r"CrossAttention.*decoder"),
    "text in the encoder": (
        lambda: run(at("vision.0", policy=CrossAttention())),
        PrunekitError,
        r"CrossAttention.*decoder",
    ),
    "misspelt queries": (
        lambda: SelfAttention(queries="visaul"),  # type: ignore[arg-type]
        NeedsError,
        r"visaul.*visual, cls, embedding.*Did you mean 'visual'\?",
    ),
    "misspelt text queries": (
        lambda: CrossAttention(queries="instructions"),  # type: ignore[arg-type]
        NeedsError,
        r"instructions.*text, last, instruction.*Did you mean 'instruction'\?",
    ),
    "misspelt rows": (lambda: Needs(attention="csl"), NeedsError, r"csl.*cls.*Did you mean 'cls'\?"),
    "a layer that comes later": (
        lambda: run(at("decoder.1", policy=CrossAttention(layer=2))),
        NeedsError,
        r"layer 2.*allowed are 0",
    ),
    "an encoder layer too many": (
        lambda: run(at("input", policy=SelfAttention(layer=7))),
        NeedsError,
        r"layer 7.*0 to 3",
    ),
    "fastv at layer 0": (lambda: run(FastV(layer=0)), SiteError, r"decoder\.0.*input"),
    "fastv too deep": (lambda: run(FastV(layer=40)), SiteError, r"decoder\.40.*4 layers"),
    "method with nothing": (lambda: run(FasterVLM(keep=0)), BudgetError, r"tokens=0"),
    "method with too much": (lambda: run(FastV(keep=1.5)), BudgetError, r"1\.5"),
    "positions": (lambda: run(at("input"), positions="compakt"), PrunekitError, r"compakt.*original.*compact"),
}


@pytest.mark.parametrize(("action", "error", "text"), MISTAKES.values(), ids=MISTAKES)
def test_mistakes_have_names(action: Callable[[], Any], error: type[PrunekitError], text: str) -> None:
    with pytest.raises(error, match=f"(?s){text}") as caught:
        action()
    assert "\n\n" not in str(caught.value)
    assert "  " not in str(caught.value), "a seam of two strings"


@dataclass(frozen=True)
class Answers(PruningPolicy):
    """Answers with whatever `make` says."""

    make: Callable[[VisualTokens], Any]

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        return self.make(tokens)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Scores(ScoringPolicy):
    """Scores with whatever `make` says."""

    make: Callable[[VisualTokens], Any]

    def score(self, tokens: VisualTokens) -> torch.Tensor:
        return self.make(tokens)  # type: ignore[no-any-return]


def kept(*rows: list[int]) -> Callable[[VisualTokens], Selection]:
    return lambda tokens: Selection(torch.tensor([*rows]).repeat(len(tokens.source), 1))


def raw(kept: Any, scores: Any = None) -> Selection:
    """A selection whose types nobody has checked: in use, unlike in these tests, annotations are not enforced."""
    selection = object.__new__(Selection)
    for name, value in {"kept": kept, "counts": None, "scores": scores, "owner": None, "weight": None}.items():
        object.__setattr__(selection, name, value)
    return selection


ANSWERS: dict[str, tuple[Callable[[VisualTokens], Any], str]] = {
    "no selection": (lambda tokens: torch.arange(4), r"must return a Selection.*Tensor"),
    "nothing": (lambda tokens: None, r"must return a Selection.*NoneType"),
    "floats": (lambda tokens: raw(torch.ones(1, 4)), r"integers.*float32"),
    "a mask": (lambda tokens: raw(tokens.valid), r"integers.*bool"),
    "a list": (lambda tokens: raw([[0, 1, 2, 3]]), r"tensor of integers.*list"),
    "no batch": (lambda tokens: raw(torch.arange(4)), r"\[batch, kept\].*\[4\]"),
    "another batch": (lambda tokens: Selection(torch.arange(4).repeat(5, 1)), r"batch 1.*\[5, 4\]"),
    "too wide": (lambda tokens: Selection(torch.arange(50)[None]), r"at most 36.*\[1, 50\]"),
    "too few": (kept([0, 1, 2]), r"kept \[3\].*4 tokens.*\[4\]"),
    "too many": (kept([0, 1, 2, 3, 4]), r"kept \[5\].*4 tokens.*\[4\]"),
    "unsorted": (kept([3, 1, 2, 7]), r"ascending without duplicates.*\[3, 1, 2, 7\]"),
    "twice the same": (kept([1, 1, 2, 7]), r"ascending without duplicates.*\[1, 1, 2, 7\]"),
    "out of range": (kept([1, 2, 3, 36]), r"0 to 35.*\[1, 2, 3, 36\]"),
    "below zero": (kept([-5, 1, 2, 3]), r"kept \[3\].*\[4\]|-5"),
    "gaps": (kept([1, -1, 2, 3]), r"kept \[3\].*\[4\]|-1"),
    "counts that lie": (lambda tokens: Selection(torch.tensor([[0, 1, -1, -1]]), (4,)), r"-1"),
    "scores of another shape": (
        lambda tokens: raw(torch.arange(4)[None], torch.rand(1, 3)),
        r"scores.*\[1, 36\].*\[1, 3\]",
    ),
}


@pytest.mark.parametrize("site", ["vision.0", "input", "decoder.2"])
@pytest.mark.parametrize(("make", "text"), ANSWERS.values(), ids=ANSWERS)
def test_answers_that_are_no_selection(make: Callable[[VisualTokens], Any], text: str, site: str) -> None:
    with pytest.raises(PolicyError, match=f"(?s)Answers at '{site}'.*({text})"):
        run(at(site, Keep(tokens=4), Answers(make)))


def holed(tokens: VisualTokens, value: float) -> torch.Tensor:
    scores = torch.rand(tokens.valid.shape)
    scores[0, 5] = value
    return scores


SCORES: dict[str, tuple[Callable[[VisualTokens], Any], str]] = {
    "nan": (lambda tokens: holed(tokens, float("nan")), r"NaN"),
    "inf": (lambda tokens: holed(tokens, float("inf")), r"infinite"),
    "minus inf": (lambda tokens: holed(tokens, -float("inf")), r"infinite"),
    "constant": (lambda tokens: torch.full(tokens.valid.shape, 1 / 36), r"same for all.*rounding noise"),
    "zero": (lambda tokens: torch.zeros(tokens.valid.shape), r"same for all"),
    "constant but for rounding": (lambda tokens: torch.rand(1, 36, 300).softmax(-1).mean(-1), r"same for all"),
    "one for each row": (lambda tokens: tokens.hidden.mean((1, 2)), r"\[batch, visual\]|\[1, 36\]"),
    "one for each channel": (lambda tokens: tokens.hidden, r"\[batch, visual\]|\[1, 36\]"),
    "too many": (lambda tokens: torch.rand(1, 40), r"\[1, 36\].*\[1, 40\]|\[batch, visual\]"),
    "complex": (lambda tokens: torch.rand(1, 36, dtype=torch.complex64), r"complex|real|float|scores"),
    "no tensor": (lambda tokens: [0.5] * 36, r"list"),
}


@pytest.mark.parametrize(("make", "text"), SCORES.values(), ids=SCORES)
def test_scores_that_rank_nothing(make: Callable[[VisualTokens], Any], text: str) -> None:
    with pytest.raises(PolicyError, match=f"(?s)Scores.*({text})") as caught:
        run(at("input", HALF, Scores(make)))
    if any(word in text for word in ("NaN", "infinite", "same")):
        assert isinstance(caught.value, ScoresError)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.float16, torch.bfloat16, torch.float64, torch.bool])
@torch.no_grad()
def test_scores_of_any_real_type_rank(dtype: torch.dtype) -> None:
    """In every row of a ragged batch the highest are kept; what is no token is never chosen, whatever its score."""
    model = subject("llava", "sdpa")
    inputs = model.make_inputs(batch=2, images=(1, 2))

    def score(tokens: VisualTokens) -> torch.Tensor:
        order = torch.arange(tokens.valid.shape[1]).expand(tokens.valid.shape)
        return ((order % 9 == 0) | ~tokens.valid).to(dtype)

    with prune(model.model, at("input", Keep(tokens=4), Scores(score))) as session:
        model.model(**inputs)
    for row, chosen in enumerate(session.trace[0].kept.tolist()):
        assert all(place % 9 == 0 for place in chosen), f"row {row} kept {chosen}"


def test_equal_scores_of_a_row_that_keeps_all_are_no_mistake() -> None:
    run(at("input", Keep(ratio=1.0), Scores(lambda tokens: torch.zeros(tokens.valid.shape))))


def test_abstract_classes_are_not_instantiated() -> None:
    for abstract in (PruningPolicy, ScoringPolicy):
        with pytest.raises(TypeError, match="abstract"):
            abstract()  # type: ignore[abstract]


def test_a_text_model_is_not_supported() -> None:
    sizes = {"vocab_size": 20, "hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    config = LlamaConfig(num_hidden_layers=1, **sizes)
    text = r"LlamaForCausalLM.*'llama'.*supported are.*llava"
    with pytest.raises(UnsupportedModelError, match=text), prune(LlamaForCausalLM(config), at("input")):
        pass


@pytest.mark.parametrize("model", [torch.nn.Linear(2, 2), None, "llava"], ids=["layer", "none", "name"])
def test_things_that_are_no_model(model: Any) -> None:
    with pytest.raises(UnsupportedModelError, match=r"supported are.*llava"), prune(model, at("input")):
        pass


def test_text_that_ends_with_its_image() -> None:
    model = subject("llava", "sdpa")
    inputs = model.make_inputs(text=6)
    last = int((inputs["input_ids"][0] == model.family.image_token).nonzero().max()) + 1
    cut = {name: value[:, :last] if value.ndim == 2 else value for name, value in inputs.items()}
    with torch.no_grad(), prune(model.model, at("decoder.2", HALF, CrossAttention())):
        with pytest.raises(NeedsError, match=r"after the image.*last"):
            model.model(**cut)
        model.model(**inputs)


def test_rows_check_themselves() -> None:
    with pytest.raises(NeedsError, match=r"cue=-1.*at least 0"):
        Rows("instruction", cue=-1)


def test_every_error_is_a_value_error() -> None:
    import prunekit.errors as errors

    named = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert len(named) > 10
    assert all(issubclass(each, PrunekitError) and issubclass(each, ValueError) for each in named)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_indices_of_either_width(dtype: torch.dtype) -> None:
    for site in ("vision.0", "input", "decoder.2"):
        run(at(site, Keep(tokens=4), Answers(lambda tokens: Selection(torch.arange(4, dtype=dtype)[None]))))
