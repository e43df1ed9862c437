"""Scores against plain loops over their formulas, on rows of different lengths."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from policies_common import best, left, positions, random_tokens

from prunekit import Keep, Rows, ScoringPolicy, States, VisualTokens
from prunekit.errors import PolicyError
from prunekit.policies import (
    ClsSimilarity,
    CrossAttention,
    JointAttention,
    KeyNorm,
    Norm,
    Oracle,
    Random,
    SelfAttention,
    TextRelevance,
)

COUNTS = (30, 17, 1, 0)
Formula = Callable[[VisualTokens, int, int], float]


def dot(a: Any, b: Any) -> float:
    return sum(float(x) * float(y) for x, y in zip(a, b, strict=True))


def cosine(a: Any, b: Any) -> float:
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def embedding(tokens: VisualTokens, row: int, i: int) -> float:
    """Attention received: softmax over the keys of `h_j . h_i / sqrt(d)`, averaged over the queries j."""
    states = tokens.hidden[row, : tokens.counts[row]].tolist()
    scale, total = math.sqrt(len(states[0])), 0.0
    for query in states:
        powers = [math.exp(dot(query, key) / scale) for key in states]
        total += powers[i] / sum(powers)
    return total / len(states)


def relevance(tokens: VisualTokens, row: int, i: int) -> list[float]:
    assert tokens.text is not None
    assert tokens.question is not None
    words = [word for word, asks in zip(tokens.text[row].tolist(), tokens.question[row].tolist(), strict=True) if asks]
    return [cosine(tokens.hidden[row, i].tolist(), word) for word in words]


def key(tokens: VisualTokens, row: int, i: int) -> list[float]:
    """All heads of a token's key, one after the other."""
    assert tokens.keys is not None
    return [value for head in tokens.keys[row, :, i].tolist() for value in head]


def cls(tokens: VisualTokens, row: int, i: int) -> float:
    patch, whole = (tokens.states[States("hidden", -2, of=of)] for of in ("visual", "cls"))
    return cosine(patch[row, i].tolist(), whole[row, 0].tolist())


def hashed(tokens: VisualTokens, row: int, i: int) -> float:
    """Integers of any size, where the policy has to stay inside 64 bits."""
    prime = 2**31 - 1
    largest = [max(range(8), key=lambda c: float(tokens.hidden[row, j, c])) + 1 for j in range(tokens.counts[row])]
    state = sum(value * (j + 1) for j, value in enumerate(largest)) % prime
    state = (state + 1_000_003 * (5 % prime) + 7_919 * (i + 1)) % prime
    for factor in (48_271, 69_621, 16_807):
        state = (state ^ (state >> 15)) * factor % prime
    return state / prime


def seen(rows: Rows) -> Formula:
    return lambda tokens, row, i: float(tokens.attention[rows][row, i])


IMAGE, TEXT = Rows("image", reduce="max"), Rows("text", reduce="max")
FORMULAS: dict[ScoringPolicy, Formula] = {
    ClsSimilarity(-2): cls,
    CrossAttention(): seen(Rows("text", reduce="mean")),
    CrossAttention("last", layer=3): seen(Rows("last", 3, reduce="mean")),
    CrossAttention("instruction", cue=2): seen(Rows("instruction", reduce="mean", cue=2)),
    JointAttention(): lambda t, row, i: float(t.attention[IMAGE][row, i]) * float(t.attention[TEXT][row, i]),
    KeyNorm(): lambda tokens, row, i: math.sqrt(sum(value**2 for value in key(tokens, row, i))),
    KeyNorm(p=1): lambda tokens, row, i: sum(abs(value) for value in key(tokens, row, i)),
    Norm(): lambda tokens, row, i: math.sqrt(dot(tokens.hidden[row, i], tokens.hidden[row, i])),
    Oracle(): lambda tokens, row, i: float(tokens.side["scores"][row, i]),
    Random(5): hashed,
    SelfAttention(): seen(Rows("visual", reduce="mean")),
    SelfAttention("cls", -3): seen(Rows("cls", -3, reduce="mean")),
    SelfAttention("embedding"): embedding,
    TextRelevance(): lambda tokens, row, i: sum(relevance(tokens, row, i)) / len(relevance(tokens, row, i)),
    TextRelevance("max"): lambda tokens, row, i: max(relevance(tokens, row, i)),
}


@pytest.mark.parametrize("policy", FORMULAS, ids=repr)
@pytest.mark.parametrize("seed", [0, 1])
def test_by_loops(policy: ScoringPolicy, seed: int) -> None:
    tokens = random_tokens(COUNTS, needs=policy.needs, seed=seed)
    scores, selection = policy.score(tokens), policy.select(tokens, Keep(ratio=0.4))
    for row, count in enumerate(COUNTS):
        expected = [FORMULAS[policy](tokens, row, i) for i in range(count)]
        assert scores[row, :count].tolist() == pytest.approx(expected, rel=1e-4, abs=1e-6)
        assert positions(selection, row) == best(expected, Keep(ratio=0.4).count(count))


def test_what_counts_is_the_question() -> None:
    """Words before the image do not count, as they do not for text that the image cannot see."""
    tokens = random_tokens(COUNTS)
    assert tokens.text is not None
    other = tokens.text.clone()
    other[:, :2] = 7.0
    for policy in (TextRelevance(), TextRelevance("max")):
        assert torch.equal(policy.score(tokens), policy.score(replace(tokens, text=other)))


def test_oracle_scores_are_by_original_numbers() -> None:
    """What an earlier stage dropped still has its scores."""
    tokens = random_tokens((6,), needs=Oracle().needs)
    some = left(tokens, torch.tensor([[1, 3, 4, 5]]), (4,))
    assert torch.equal(Oracle().score(some), tokens.side["scores"][:, [1, 3, 4, 5]])


@pytest.mark.parametrize("shape", [(1, 5), (2, 6), (6,)])
def test_oracle_scores_of_another_shape(shape: tuple[int, ...]) -> None:
    tokens = replace(random_tokens((6,)), side={"scores": torch.zeros(shape)})
    with pytest.raises(PolicyError, match=r"\[batch, visual\] = \[1, 6\]"):
        Oracle().score(tokens)
