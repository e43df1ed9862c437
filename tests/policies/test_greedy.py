"""Policies that pick one token after the other, against plain loops that try every candidate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from policies_common import positions, random_tokens
from torch import Tensor

from prunekit import Keep, Rows, States, VisualTokens
from prunekit.errors import BudgetError, NeedsError, PolicyError
from prunekit.policies import ConditionalDiversity, Coverage, Diversity

LAYOUTS = [(18,), (24, 13, 1), (9, 0, 16)]


def cosines(states: Tensor) -> list[list[float]]:
    unit = states.double() / states.double().norm(dim=-1, keepdim=True)
    return (unit @ unit.T).tolist()  # type: ignore[no-any-return]


def diversity(tokens: VisualTokens, row: int, keep: int) -> list[int]:
    """First the token farthest from its nearest neighbour, then the one farthest from all picked ones."""
    near = cosines(tokens.hidden[row, : tokens.counts[row]])
    free, picks = list(range(len(near))), list[int]()
    while len(picks) < keep:
        rivals = picks or free
        picks.append(max(free, key=lambda i: min((1 - near[i][j] for j in rivals if j != i), default=math.inf)))
        free.remove(picks[-1])
    return picks


def coverage(tokens: VisualTokens, row: int, keep: int, alpha: float) -> list[int]:
    """The token that adds most to the sum over all tokens of the largest cosine to a picked one, times attention."""
    near = cosines(tokens.states[States("hidden", of_vision=True)][row, : tokens.counts[row]])
    weight = [1.0] * len(near)
    if alpha:
        weight = [float(a) ** alpha for a in tokens.attention[Rows("cls", reduce="mean")][row, : len(near)]]
    free, picks, covered = list(range(len(near))), list[int](), [0.0] * len(near)
    while len(picks) < keep:
        gains = {v: weight[v] * sum(max(0.0, near[u][v] - c) for u, c in enumerate(covered)) for v in free}
        picks.append(max(free, key=gains.__getitem__))
        free.remove(picks[-1])
        covered = [max(c, near[u][picks[-1]]) for u, c in enumerate(covered)]
    return picks


def conditional(tokens: VisualTokens, row: int, keep: int, relevance: str) -> list[int]:
    """The largest determinant of the kernel of the picked tokens; beyond the width of states all are 0."""
    count = tokens.counts[row]
    states = tokens.hidden[row, :count].double()
    if relevance == "text":
        assert tokens.text is not None
        assert tokens.question is not None
        words = tokens.text[row, tokens.question[row]].double()
        raw = [float(torch.cosine_similarity(words, state[None]).mean()) for state in states]
    else:
        patches, texts = tokens.side["image_embeds"][row].double(), tokens.side["text_embeds"][row].double()
        raw = [-float(torch.cosine_similarity(texts, patches[i][None]).mean()) for i in range(count)]
    low, high = min(raw, default=0.0), max(raw, default=0.0)
    scale = torch.tensor([(r - low + 1e-6) / max(high - low, 1e-6) for r in raw])
    kernel = scale[:, None] * torch.tensor(cosines(states)) * scale
    free, picks = list(range(count)), list[int]()
    while len(picks) < keep:
        spans = len(picks) >= states.shape[1]
        dets = {i: 0.0 if spans else float(torch.linalg.det(kernel[[*picks, i]][:, [*picks, i]])) for i in free}
        picks.append(max(free, key=dets.__getitem__))
        free.remove(picks[-1])
    return picks


CASES: dict[Any, Callable[[VisualTokens, int, int], list[int]]] = {
    Diversity(): diversity,
    Coverage(): lambda tokens, row, keep: coverage(tokens, row, keep, 1.0),
    Coverage(2.0): lambda tokens, row, keep: coverage(tokens, row, keep, 2.0),
    Coverage(0): lambda tokens, row, keep: coverage(tokens, row, keep, 0.0),
    ConditionalDiversity(): lambda tokens, row, keep: conditional(tokens, row, keep, "text"),
    ConditionalDiversity("clip"): lambda tokens, row, keep: conditional(tokens, row, keep, "clip"),
}


@pytest.mark.parametrize("policy", CASES, ids=repr)
@pytest.mark.parametrize("counts", LAYOUTS)
@pytest.mark.parametrize("ratio", [0.2, 0.7])
def test_by_loops(policy: Any, counts: tuple[int, ...], ratio: float) -> None:
    """Also in the order of the picks."""
    tokens, keep = random_tokens(counts, needs=policy.needs, seed=3), Keep(ratio=ratio)
    order, selection = policy.order(tokens, keep), policy.select(tokens, keep)
    for row, count in enumerate(counts):
        expected = CASES[policy](tokens, row, keep.count(count))
        assert order[row, : len(expected)].tolist() == expected
        assert positions(selection, row) == sorted(expected)


def test_copies_come_last() -> None:
    """Of tokens that come in pairs each pair gives one first."""
    tokens = random_tokens((16,), needs=Coverage(0).needs)
    states = tokens.states[States("hidden", of_vision=True)]
    for values in (tokens.hidden, states):
        values[:, 8:] = values[:, :8]
    for policy in (Diversity(), ConditionalDiversity()):
        assert len({number % 8 for number in positions(policy.select(tokens, Keep(tokens=7)))}) == 7
    first = positions(Coverage(0).select(tokens, Keep(tokens=4)))
    assert max(first) < 8  # the copy of a picked token covers nothing new, and ties go to the first


def test_a_share_of_its_own() -> None:
    policy = Diversity(ratio=0.5)
    assert [policy.planned(total) for total in (1, 5, 7, 576)] == [1, 2, 4, 288]  # halves go to even numbers
    tokens = random_tokens((7, 5))
    assert policy.select(tokens, None).counts == (4, 2)


def test_bad_arguments() -> None:
    for ratio in (0.0, 1.1, -0.5):
        with pytest.raises(BudgetError, match=r"ratio=.*above 0 and at most 1"):
            Diversity(ratio=ratio)
    with pytest.raises(PolicyError, match=r"alpha=-1.*at least 0"):
        Coverage(-1)
    with pytest.raises(NeedsError, match=r"allowed are 'text', 'clip'.*Did you mean 'text'"):
        ConditionalDiversity("texts")  # type: ignore[arg-type]
