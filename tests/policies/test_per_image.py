"""PerImage in a session: a sample's budget, split over its images."""

from __future__ import annotations

import pytest
import torch

from prunekit import Keep, Stage, prune
from prunekit.errors import BudgetError
from prunekit.models.tiny import tiny_random
from prunekit.policies import Norm, PerImage


@torch.no_grad()
def test_splits_the_budget_of_a_sample() -> None:
    model, make_inputs = tiny_random("llava")
    with prune(model, Stage("input", PerImage(Norm()), Keep(tokens=9))) as session:
        model(**make_inputs(batch=2, images=(2, 1)))
    (record,) = session.trace
    several, alone = record.kept
    size = record.visual[1]
    assert record.visual == (2 * size, size)
    assert [(several < size).sum().item(), (several >= size).sum().item()] == [4, 5]
    assert (alone >= 0).sum() == 9


@torch.no_grad()
def test_needs_to_know_what_is_left() -> None:
    model, make_inputs = tiny_random("llava")
    stages = Stage("input", Norm(), Keep(tokens=9)), Stage("decoder.2", PerImage(Norm()), Keep(tokens=4))
    with prune(model, *stages), pytest.raises(BudgetError, match="images have nothing certain left"):
        model(**make_inputs(batch=1, images=(2,)))
