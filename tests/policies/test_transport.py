"""OptimalTransport, that is TopV, against plain loops: Sinkhorn as products of scalings, in double precision."""

from __future__ import annotations

import math

import pytest
import torch
from policies_common import best, positions, random_tokens

from prunekit import Keep, VisualTokens
from prunekit.errors import PolicyError
from prunekit.policies import OptimalTransport, TopV

LAYOUTS = [((30, 15, 0), (3, 5)), ((17, 9, 1), None)]


def place(tokens: VisualTokens, row: int, i: int) -> tuple[float, float]:
    if tokens.grid is None:
        return (i + 0.5) / tokens.counts[row], 0.5
    height, width = tokens.grid
    i %= height * width
    return (i // width + 0.5) / height, (i % width + 0.5) / width


def contributions(tokens: VisualTokens, row: int, policy: OptimalTransport) -> list[float]:
    """Mass that arrives at each token from the others, weighted by the kernel."""
    many = range(tokens.counts[row])
    places = [place(tokens, row, i) for i in many]
    states = tokens.hidden[row].double()

    def cost(i: int, j: int) -> float:
        unlike = (1 - float(torch.cosine_similarity(states[i], states[j], dim=0))) / 2
        return (
            unlike + policy.space * math.dist(places[i], places[j]) + policy.centre * math.dist(places[j], (0.5, 0.5))
        )

    kernel = [[math.exp(-cost(i, j) / policy.epsilon) for j in many] for i in many]
    left, right = [1.0 for _ in many], [1.0 for _ in many]
    for _ in range(policy.iterations):
        left = [1 / len(many) / sum(kernel[i][j] * right[j] for j in many) for i in many]
        right = [1 / len(many) / sum(kernel[i][j] * left[i] for i in many) for j in many]
    return [sum(left[i] * kernel[i][j] ** 2 * right[j] for i in many if i != j) for j in many]


def kept(scores: list[float], count: int, recover: float) -> list[int]:
    """The best, and at equal steps some of the others in their order."""
    more = min(int(count * recover), len(scores) - count)
    first = best(scores, count - more)
    others = [i for i in range(len(scores)) if i not in first]
    return sorted(first + [others[int((k + 0.5) * len(others) / more)] for k in range(more)])


@pytest.mark.parametrize(("counts", "grid"), LAYOUTS)
@pytest.mark.parametrize(
    "policy",
    [
        OptimalTransport(),
        OptimalTransport(recover=0.0),
        OptimalTransport(space=0.0, centre=1.0, epsilon=0.5, iterations=2, recover=0.5),
    ],
)
@pytest.mark.parametrize("ratio", [0.2, 0.6, 1.0])
def test_by_loops(
    policy: OptimalTransport, counts: tuple[int, ...], grid: tuple[int, int] | None, ratio: float
) -> None:
    tokens = random_tokens(counts, grid=grid)
    found, selection = policy.score(tokens), policy.select(tokens, Keep(ratio=ratio))
    for row, count in enumerate(counts):
        expected = contributions(tokens, row, policy)
        assert found[row, :count].tolist() == pytest.approx(expected, rel=1e-3, abs=1e-7)
        assert positions(selection, row) == kept(expected, Keep(ratio=ratio).count(count), policy.recover)


def test_topv() -> None:
    (stage,) = TopV(keep=0.3, layer=4, recover=0.2).stages(32)
    assert (stage.site, stage.policy, stage.keep) == ("decoder.4", OptimalTransport(recover=0.2), Keep(ratio=0.3))


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0}, {"iterations": 0}, {"recover": 1.0}, {"recover": -0.1}])
def test_bad_arguments(wrong: dict[str, float]) -> None:
    with pytest.raises(PolicyError, match="epsilon must be above 0, iterations at least 1, recover at least 0"):
        OptimalTransport(**wrong)  # type: ignore[arg-type]
