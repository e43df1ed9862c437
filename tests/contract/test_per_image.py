"""Budgets per image: every image keeps its own share, its best tokens, whatever the other images of the sample are."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

import pytest
import torch
from catalogue import subject
from invariants import LAYOUTS
from torch import Tensor

from prunekit import Keep, PruningPolicy, Selection, Stage, VisualTokens, prune
from prunekit.errors import BudgetError, PolicyError
from prunekit.policies import CrossAttention, Random, SelfAttention, UniformGrid
from prunekit.policy import top_k

FAMILIES = ("llava", "llava_next", "qwen2_vl", "qwen2_5_vl", "llava_onevision")  # an image is a run of placeholders
KEEPS = {"ratio": Keep(ratio=0.3, per="image"), "tokens": Keep(tokens=5, per="image")}


def images_of(ids: Tensor, tokens: tuple[int, ...]) -> list[int]:
    """Visual tokens of each image of a row, read off the prompt: words stand between images."""
    return [len(list(run)) for visual, run in groupby(ids.tolist(), lambda token: token in tokens) if visual]


@pytest.mark.parametrize("keep", KEEPS.values(), ids=KEEPS)
@pytest.mark.parametrize("site", ["input", "decoder.2"])
@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_each_image_keeps_its_best(family: str, site: str, keep: Keep) -> None:
    model = subject(family, "sdpa")
    inputs = model.make_inputs(**LAYOUTS["ragged"], seed=2)
    policy = Random(seed=1) if site == "input" else CrossAttention()
    with prune(model.model, Stage(site, policy, keep)) as session:
        model.model(**inputs)
    (record,) = session.trace
    assert record.scores is not None
    for row, ids in enumerate(inputs["input_ids"]):
        kept, start = record.kept[row][record.kept[row] >= 0], 0
        for size in images_of(ids, model.family.tokens):
            own = kept[(kept >= start) & (kept < start + size)] - start
            best = record.scores[row, start : start + size].topk(keep.count(size)).indices.sort().values
            assert own.tolist() == best.tolist()
            start += size
        assert len(kept) == sum(keep.count(size) for size in images_of(ids, model.family.tokens))


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
@torch.no_grad()
def test_inside_the_encoder_and_behind_it(family: str) -> None:
    """Images are pruned one by one there anyway; what they have left is known to later stages."""
    model = subject(family, "sdpa")
    inputs = model.make_inputs(**LAYOUTS["ragged"], seed=2)
    stages = (
        Stage("vision.1", SelfAttention(), Keep(tokens=8, per="image")),
        Stage("input", UniformGrid(), Keep(tokens=6, per="image")),
        Stage("decoder.2", Random(), Keep(tokens=3, per="image")),
    )
    with prune(model.model, *stages) as session:
        model.model(**inputs)
    for record, each in zip(session.trace, (8, 6, 3), strict=True):
        images = [len(row[row >= 0]) // each for row in record.kept]
        assert images == [2, 1, 3] if family != "internvl" else all(count >= 1 for count in images)


def test_a_budget_per_image_after_one_per_sample_is_refused() -> None:
    model = subject("llava", "sdpa")
    stages = (Stage("input", Random(), Keep(ratio=0.5)), Stage("decoder.2", Random(), Keep(ratio=0.3, per="image")))
    with prune(model.model, *stages) as session, torch.no_grad():
        model.model(**model.make_inputs())  # one image: a sample is an image
        assert len(session.trace) == 2
        with pytest.raises(BudgetError, match=r"per image.*earlier stage.*whole samples"):
            model.model(**model.make_inputs(images=2))


@dataclass(frozen=True)
class BySample(PruningPolicy):
    """Knows nothing of images."""

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        assert keep is not None
        counts = tokens.budget(keep)
        return Selection(top_k(tokens.source.float(), tokens, counts), counts)


def test_a_policy_that_ignores_it_is_found_out() -> None:
    model = subject("llava", "sdpa")
    with (
        prune(model.model, Stage("input", BySample(), Keep(ratio=0.3, per="image"))),
        pytest.raises(PolicyError, match=r"BySample.*\[\[0, 20\]\].*per image.*\[\[10, 10\]\]"),
    ):
        model.model(**model.make_inputs(images=2))
