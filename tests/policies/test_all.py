"""Every policy and method in every variant, alone and without a model: what holds for all of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from policies_common import meta, positions
from policies_zoo import SUBJECTS, Subject, Tokens, run
from torch import Tensor

from prunekit import Keep, Method, PruningPolicy, ScoringPolicy, Stage, VisualTokens, policies
from prunekit.errors import PolicyError, PrunekitError, ScoresError, UnsupportedInputError
from prunekit.selection import merged

LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[int, int] | None]] = {
    "images": ((35, 35), (5, 7)),
    "samples": ((70, 35, 0), (5, 7)),
    "ragged": ((30, 17, 1), None),
    "one": ((1,), None),
    "empty": ((0, 16), None),
}
GRIDS = {"MustDrop", "Protect", "SpatialQuota"}  # cannot do without a grid of equal images

EVERY = [(name, layout) for name in SUBJECTS for layout in LAYOUTS]


def base(name: str) -> str:
    return name.partition("(")[0]


def fits(name: str, layout: str) -> bool:
    """Inside the encoder rows are images, and none is empty."""
    counts, grid = LAYOUTS[layout]
    whole = base(name) not in GRIDS or (grid is not None and not (base(name) == "MustDrop" and len(set(counts)) > 1))
    return whole and not (SUBJECTS[name].inside and 0 in counts)


def gap(subject: Subject, tokens: Tokens) -> float:
    """How far rows of a batch are from the same rows alone: infinite where other tokens stay."""
    together, far = run(subject, tokens), 0.0
    for row, count in enumerate(tokens.whole[0].counts):
        alone = run(subject, tokens.alone(row)) if count else []
        for (seen, selection, counts), (own_seen, own, own_counts) in zip(together, alone, strict=bool(alone)):
            if counts[row] != own_counts[0] or positions(selection, row) != positions(own, 0):
                return float("inf")
            states = merged(seen.hidden, selection)[row, : counts[row]]
            far = max(
                far, float((states - merged(own_seen.hidden, own)[0, : counts[row]]).abs().amax() if len(states) else 0)
            )
    return far


def changed(change: Callable[[Tensor], Tensor]) -> Callable[[Any], Any]:
    """Applies `change` to every floating-point input of a policy."""

    def walk(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: walk(item) for key, item in value.items()}
        return change(value) if isinstance(value, Tensor) and value.is_floating_point() else value

    names = ("hidden", "attention", "keys", "text", "states", "side")
    return lambda tokens: replace(tokens, **{name: walk(getattr(tokens, name)) for name in names})


def test_everything_is_here() -> None:
    assert {base(name) for name in SUBJECTS} == set(policies.__all__)
    for name in policies.__all__:
        assert issubclass(getattr(policies, name), (Method, PruningPolicy))


@pytest.mark.parametrize(("name", "layout"), [case for case in EVERY if fits(*case)])
def test_rows_alone(name: str, layout: str) -> None:
    """Answers are valid and as many as planned (`run` checks it), and a row's does not depend on its neighbours."""
    subject, (counts, grid) = SUBJECTS[name], LAYOUTS[layout]
    tokens = Tokens(subject, counts, grid)
    for stage, (_, _, kept) in zip(subject.stages, run(subject, tokens), strict=True):
        planned = [stage.count(total) for total in counts]
        assert planned == list(kept) or None in planned
    if not subject.coupled:
        assert gap(subject, tokens) < 1e-5


@pytest.mark.parametrize("name", [name for name, subject in SUBJECTS.items() if subject.coupled])
def test_coupled_rows(name: str) -> None:
    """What is declared as coupled is."""
    subject = SUBJECTS[name]
    gaps = [gap(subject, Tokens(subject, (36, 36), (6, 6), seed)) for seed in range(3)]
    assert max(gaps) > 1e-3


CHANGED_AT_FULL = {
    "HoloV(variant='released')": "feeds tokens on crop by crop",
    "PruMerge": "adds neighbours",
    "PruMerge(variant='released')": "adds neighbours",
    "SparseVLM": "feeds the recycled one on last",
    "VisionZip(variant='released')": "[CLS] takes one place",
}
FEWER_AT_FULL = {
    "HiRED(tiles=True)": "shares of tiles are truncated",
    "SparseVLM(version='plus')": "always drops one",
    "VScan(variant='released')": "loses what windows cannot divide",
}


@pytest.mark.parametrize("name", [name for name, subject in SUBJECTS.items() if subject.full])
def test_keep_everything(name: str) -> None:
    subject = SUBJECTS[name]
    assert subject.full is not None
    full = Subject(subject.full)
    same, all_ = True, True
    for seen, selection, counts in run(full, Tokens(full, *LAYOUTS["images" if subject.inside else "samples"])):
        all_ &= counts == seen.counts
        same &= counts == seen.counts and torch.equal(
            merged(seen.hidden, selection)[seen.valid], seen.hidden[seen.valid]
        )
    assert all_ == (name not in FEWER_AT_FULL)
    assert same == (name not in CHANGED_AT_FULL | FEWER_AT_FULL)


def answers(name: str, change: Callable[[Tensor], Tensor]) -> Any:
    """What a chain keeps of the first row for changed inputs, stage by stage, twice the same; or its error."""
    subject = SUBJECTS[name]
    tokens = Tokens(subject, *LAYOUTS["images" if subject.inside else "samples"]).map(changed(change))
    found: list[Any] = []
    for _ in range(2):
        try:
            found.append([positions(selection, 0) for _, selection, _ in run(subject, tokens)])
        except PrunekitError as error:
            found.append(type(error))
    assert found[0] == found[1]
    return found[0]


def scored(name: str) -> bool:
    subject = SUBJECTS[name]
    tokens = Tokens(subject, *LAYOUTS["images" if subject.inside else "samples"])
    return any(selection.scores is not None for _, selection, _ in run(subject, tokens))


BLIND = {"Random"}  # scores the number of a token, not its states
PLACES = {"Protect", "OptimalTransport", "TopV"}  # scores depend on places, too
PLACES_OF_SOME = {"SparseVLM(version='plus')"}


@pytest.mark.parametrize("name", SUBJECTS)
@pytest.mark.parametrize("value", [1.0, 0.0, float("nan")])
def test_nothing_to_choose_by(name: str, value: float) -> None:
    """Scores that rank nothing are refused; what gives none answers with a valid selection, twice the same."""
    answer = answers(name, lambda tensor: torch.full_like(tensor, value))
    if not scored(name) or base(name) in BLIND:
        assert isinstance(answer, list)
    elif value != value or (base(name) not in PLACES and name not in PLACES_OF_SOME):
        assert answer is ScoresError


GREEDY = {"Diversity", "DivPrune", "Coverage", "SCOPE", "ConditionalDiversity", "CDPruner", "Duplication", "DART"}


@pytest.mark.parametrize("name", [name for name in SUBJECTS if base(name) in GREEDY])
def test_equal_tokens_are_taken_in_order(name: str) -> None:
    (kept,) = answers(name, torch.ones_like)
    assert kept == list(range(len(kept)))


SCORING = [
    name for name, subject in SUBJECTS.items() if all(isinstance(policy, ScoringPolicy) for policy in subject.policies)
]


@pytest.mark.parametrize("name", [name for name in SCORING if base(name) not in BLIND | PLACES | {"Mix"}])
def test_ties_go_to_the_first(name: str) -> None:
    """All tokens but one are equal: the first of them stay, whether the one does or not."""
    subject, odd = Subject(SUBJECTS[name].stages[:1]), 20

    def alike(tensor: Tensor) -> Tensor:
        same = torch.ones_like(tensor)
        for axis, size in enumerate(tensor.shape):
            if size == 35:  # the axis of visual tokens
                same.select(axis, odd).copy_(tensor.select(axis, odd))
        return same

    tokens = Tokens(subject, *LAYOUTS["images"]).map(changed(alike))
    ((_, selection, _),) = run(subject, tokens)
    for row in range(2):
        kept = [number for number in positions(selection, row) if number != odd]
        assert kept == [number for number in range(35) if number != odd][: len(kept)]


@pytest.mark.parametrize("name", [name for name in SUBJECTS if base(name) in GRIDS])
def test_no_grid(name: str) -> None:
    subject = SUBJECTS[name]
    with pytest.raises(UnsupportedInputError, match="grid"):
        run(subject, Tokens(subject, *LAYOUTS["ragged"]))


BY_IMAGE = {"Norm", "Random", "PerImage", "UniformGrid", "AveragePooling", "Downsampling", "STAR", "Oracle"}  # some


@pytest.mark.parametrize("name", [name for name, subject in SUBJECTS.items() if subject.stages[0].keep])
def test_a_budget_for_every_image(name: str) -> None:
    """It is met, or refused by name where a sample has several images; with one image it is that of the sample."""
    first = SUBJECTS[name].stages[0]
    by_sample, by_image = (Subject((replace(first, keep=replace(first.keep, per=per)),)) for per in ("sample", "image"))
    one = Tokens(by_sample, *LAYOUTS["images"])
    (_, expected, _), (_, found, _) = run(by_sample, one)[0], run(by_image, one)[0]
    assert torch.equal(found.kept, expected.kept)
    if by_image.inside:
        return  # a row is an image
    refused = ""
    try:
        run(by_image, Tokens(by_image, *LAYOUTS["samples"]))
    except PolicyError as error:
        refused = str(error)
    assert not refused or ("knows budgets per sample only" in refused and base(name) not in BY_IMAGE)


@pytest.mark.parametrize("name", SUBJECTS)
def test_half_precision(name: str) -> None:
    subject = SUBJECTS[name]
    tokens = Tokens(subject, *LAYOUTS["images" if subject.inside else "samples"])
    for seen, selection, counts in run(subject, tokens.map(changed(Tensor.bfloat16))):
        states = merged(seen.hidden, selection)
        assert states.dtype == torch.bfloat16
        assert all(states[row, :count].isfinite().all() for row, count in enumerate(counts))


READERS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__array__")


class Waited(Exception):
    """A value was read."""


def waits(stage: Stage, tokens: VisualTokens) -> bool:
    """Whether a policy reads a value, where that is noticed."""

    def wait(*args: Any, **kwargs: Any) -> None:
        raise Waited

    with pytest.MonkeyPatch.context() as patch:
        for reader in READERS:
            patch.setattr(Tensor, reader, wait)
        try:
            stage.policy.select(replace(tokens, memory={}), stage.keep)
        except Waited:
            return True
    return False


@pytest.mark.parametrize("name", SUBJECTS)
def test_nothing_is_read(name: str) -> None:
    """`select` reads no value, on the CPU and without values at all, unless the policy says so."""
    subject = SUBJECTS[name]
    tokens = Tokens(subject, *LAYOUTS["images" if subject.inside else "samples"])
    for stage, (seen, _, _) in zip(subject.stages, run(subject, tokens), strict=True):
        declared = stage.policy.waits and stage.keep is None
        assert waits(stage, seen) == declared
        if not declared:
            selection = stage.policy.select(meta(replace(seen, memory={})), stage.keep)
            assert selection.kept.is_meta
            assert merged(meta(seen).hidden, selection).is_meta


@dataclass(frozen=True)
class Wrong(ScoringPolicy):
    """A policy with a mistake."""

    mistake: str

    def score(self, tokens: VisualTokens) -> Tensor:
        norm = tokens.hidden.norm(dim=-1)
        if self.mistake == "mean of the batch":
            return (norm - norm.mean()).abs()
        if self.mistake == "padding":
            return (norm - norm.mean(1, keepdim=True)).abs()
        return norm if norm.amax().item() > 0 else -norm


@pytest.mark.parametrize("mistake", ["mean of the batch", "padding"])
def test_a_row_that_depends_on_others_is_noticed(mistake: str) -> None:
    subject = Subject((Stage("input", Wrong(mistake), Keep(ratio=0.4)),))
    assert gap(subject, Tokens(subject, *LAYOUTS["ragged"])) == float("inf")


def test_a_read_is_noticed() -> None:
    subject = Subject((Stage("input", Wrong("read"), Keep(ratio=0.4)),))
    assert waits(subject.stages[0], Tokens(subject, *LAYOUTS["images"]).whole[0])
