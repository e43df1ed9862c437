"""What budgets in FLOPs are charged for is what a trace of the real forward pass counts, to the last multiply-add."""

from __future__ import annotations

import pytest
from budget_subjects import NAMES, PARTS
from catalogue import subject
from zoo import ZOO

from prunekit import Budget, Keep, Method, Stage, policies
from prunekit.budget import CostModel, tokens_per_layer
from prunekit.budget.scorers import scorers
from prunekit.errors import BudgetError
from prunekit.flops import count
from prunekit.plan import Plan

BY_DATA = {"prumerge-adaptive", "prumerge-plus", "hired-tiles", "mustdrop"}


@pytest.mark.parametrize("ratio", [0.25, 0.6])
@pytest.mark.parametrize("name", [name for name in ZOO if name not in BY_DATA])
def test_the_closed_form_is_what_a_trace_counts(name: str, ratio: float) -> None:
    """The layers, and all that policies read and compute."""
    model = subject("llava", "sdpa")
    inputs, items = model.make_inputs(text=6), ZOO[name].build(Keep(ratio=ratio))
    costs, total = CostModel.of(model.model), inputs["input_ids"].shape[1]
    cost = count(model.model, inputs, items)
    stages = Plan.of(items, costs.shape).stages
    levels = tokens_per_layer(items, 36, costs.shape)
    assert levels == cost.visual_tokens_per_layer
    layers, own = costs.work(stages, 36, total - 36, behind=7)
    assert (layers, own) == (cost.macs["prefill"], cost.macs["scorer"])


ASKS = {"Oracle"}  # for scores that the user hands over
ALONE = [name for name in NAMES if not issubclass(getattr(policies, name), Method) and name not in ASKS]


@pytest.mark.parametrize("name", ALONE)
def test_the_work_of_a_policy_alone_is_what_a_trace_counts(name: str) -> None:
    """Composed policies are given a part that computes products, which they must not forget."""
    model = subject("llava", "sdpa")
    inputs, cls = model.make_inputs(text=6), getattr(policies, name)
    part = policies.TextRelevance()
    fields = {"policies": [part, policies.Norm()], "policy": part}
    policy = cls(**{field: fields[field] for field in PARTS.get(name, {})})
    kind = next(kind for kind in ("input", "decoder", "connector", "vision") if kind in policy.sites)
    stage = Stage({"decoder": "decoder.2", "vision": "vision.1"}.get(kind, kind), policy, Keep(ratio=0.5))
    costs = CostModel.of(model.model)
    _, own = costs.work((stage,), 36, inputs["input_ids"].shape[1] - 36, behind=7)
    assert own == count(model.model, inputs, stage).macs["scorer"]
    assert own > 0 or name not in PARTS


@pytest.mark.parametrize(("family", "images"), [("llava", 2), ("internvl", 1), ("gemma3", 2), ("idefics3", 2)])
def test_images_one_by_one_and_merged_patches(family: str, images: int) -> None:
    """Encoders see an image at a time, and make fewer tokens than patches of it."""
    model = subject(family, "sdpa")
    inputs, costs = model.make_inputs(images=images, text=6), CostModel.of(model.model)
    visual = int(inputs["input_ids"].eq(model.family.image_token).sum())
    stages = [Stage("input", policies.SelfAttention(), Keep(ratio=0.25))]
    merging = [policies.VisionZip(keep=0.5)] if family == "llava" else []
    for items in (stages, [policies.DivPrune(keep=0.25)], merging):
        cost = count(model.model, inputs, items or None)
        plan = Plan.of(items, costs.shape).stages
        work = costs.work(plan, visual, inputs["input_ids"].shape[1] - visual)
        assert work == (cost.macs["prefill"], cost.macs["scorer"])


def test_encoders_that_run_on_images_of_any_size_are_not_guessed() -> None:
    costs = CostModel.of(subject("llava_next", "sdpa").model)
    assert costs.encoder is None
    with pytest.raises(BudgetError, match="give the budget in tokens, average or kv"):
        Budget(flops=0.5).solve(policies.FasterVLM(), costs, visual=100, text=10)
    solved = Budget(average=0.5).solve(policies.FasterVLM(), costs, visual=100, text=10)
    assert solved.setting == {"keep": 50}
    assert "flops" not in solved.achieved
    assert solved.achieved["kv"] == 60 / 110


def test_the_work_on_embeddings() -> None:
    model = subject("llava", "sdpa")
    inputs, stage = model.make_inputs(), Stage("input", policies.SelfAttention("embedding"), Keep(ratio=0.5))
    _, own = CostModel.of(model.model).work((stage,), 36, 9)
    assert own == count(model.model, inputs, stage).macs["scorer"] == 36 * 36 * 33


def test_rows_of_text_are_an_upper_bound() -> None:
    """Without the number of text tokens behind the image, all of them are charged."""
    model = CostModel.of(subject("llava", "sdpa").model)
    stages = (Stage("decoder.2", policies.CrossAttention("text"), Keep(ratio=0.5)),)
    shapes = stages, model.shape, model.decoder, model.encoder, (36, 36, 18, 18), 36, 9
    assert scorers(*shapes)["decoder.1"] * 7 == scorers(*shapes, behind=7)["decoder.1"] * 9
