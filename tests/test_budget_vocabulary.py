"""One vocabulary of budgets: every method is brought to each measure, to the token, or refused with a reason."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from catalogue import ZOO, subject
from experiments import refused, result, write
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from prunekit import Budget, Keep, Method, Stage, policies
from prunekit.budget import CostModel, LatencyTable, Solved, achieved, average_tokens, match_average, tokens_per_layer
from prunekit.budget.scorers import scorers
from prunekit.errors import BudgetError
from prunekit.evaluation import Experiment, Result, Scenes, load_experiment, run
from prunekit.evaluation.cells import amount_label
from prunekit.evaluation.experiment import resolved
from prunekit.flops import count
from prunekit.plan import Plan, Shape

VISUAL = 576
SHARES = (0.1, 0.25, 0.5)
TEXTS = (20, 95)


@cache
def llava() -> CostModel:
    """LLaVA-1.5-7B, from its shapes."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    return CostModel.of(LlavaConfig(vision_config=vision, text_config=LlamaConfig()))


SCORING = policies.Norm()
PARTS: dict[str, dict[str, Any]] = {
    "Mix": {"policies": [SCORING, policies.Random()]},
    "Union": {"policies": [SCORING, policies.Random()]},
    "Invert": {"policy": SCORING},
    "PerImage": {"policy": SCORING},
    "Protect": {"policy": SCORING},
    "SpatialQuota": {"policy": SCORING},
}


def subject_of(name: str) -> Method | Stage:
    """A method as it works on LLaVA-1.5-7B, or a policy in a stage of its own, at a site where it has a meaning."""
    cls = getattr(policies, name)
    if name == "Sequential":
        first = Stage("input", policies.Random(), Keep(ratio=0.5))
        return policies.Sequential([first, policies.FastV(keep=0.25, layer=16)])
    if issubclass(cls, Method):
        return cls.example(llava().shape)  # type: ignore[no-any-return]
    policy = cls(**PARTS.get(name, {}))
    site = next(kind for kind in ("input", "decoder", "connector", "vision") if kind in policy.sites)
    return Stage({"decoder": "decoder.2", "vision": "vision.21"}.get(site, site), policy, Keep(ratio=0.6))


REFUSED = {
    "FitPrune": "no setting that a budget could turn",
    "MustDrop": "decides the number of tokens by itself; it cannot be matched",
}
NAMES = [name for name in policies.__all__ if isinstance(getattr(policies, name), type)]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_meets_a_share_of_flops(name: str, share: float, text: int) -> None:
    """As near as its knob goes and not above: with one more it would be above. Else the message has the range."""
    items, model = subject_of(name), llava()
    found = attempt(Budget(flops=share), items, text)
    if name in REFUSED:
        assert REFUSED[name] in str(found)
    elif isinstance(found, str):
        assert share < low_end(found), found
        assert text == 95 or name in ("PyramidDrop", "SparseVLM"), found
    else:
        assert found.achieved["flops"] <= share * (1 + 1e-9)
        more = next_setting(items, found.setting)
        if more is not None:
            assert model.flops(Plan.of([more], model.shape).stages, VISUAL, text) > share
        assert found.achieved == achieved(found.stages, model, visual=VISUAL, text=text)


def attempt(budget: Budget, items: Method | Stage, text: int) -> Solved | str:
    """The solution, or what the refusal says."""
    try:
        return budget.solve(items, llava(), visual=VISUAL, text=text)
    except BudgetError as error:
        return str(error)


def low_end(refusal: str) -> float:
    """Of the range that a refusal gives, which the nearest setting reaches."""
    found = re.search(r"the nearest is ([\d.e-]+) \(.+its range is ([\d.e-]+) to", refusal)
    assert found, refusal
    assert found[1] == found[2]
    return float(found[2])


def next_setting(items: Method | Stage, setting: dict[str, Any]) -> Any:
    """One more than the solution, or None for several stages that are scaled together."""
    ((name, value),) = setting.items()
    if isinstance(items, Stage):
        return replace(items, keep=Keep(tokens=value + 1))
    return None if name == "last stage" else replace(items, **{name: value + 1})  # type: ignore[type-var]


def test_a_share_of_flops_by_hand() -> None:
    """FastV on LLaVA-1.5-7B: two dense layers, 30 pruned ones, and one row of attention."""
    n, d, m = 576 + 95, 4096, 11008

    def layer(tokens: int) -> int:
        return 4 * tokens * d * d + 2 * tokens**2 * d + 3 * tokens * d * m

    solved = Budget(flops=0.3).solve(policies.FastV(), llava(), visual=576, text=95)
    keep = solved.setting["keep"]
    assert isinstance(keep, int)
    for tokens, within in ((keep, True), (keep + 1, False)):
        share = (2 * layer(n) + 30 * layer(tokens + 95) + n * d) / (32 * layer(n))
        assert (share <= 0.3) == within
        if within:
            assert solved.achieved["flops"] == pytest.approx(share, rel=1e-12)


def test_every_measure_by_hand() -> None:
    """Half of the tokens from layer 16 on; the KV cache of LLaVA-1.5-7B has 512 KiB a token in 16 bits."""
    stages = [Stage("decoder.16", policies.Random(), Keep(ratio=0.5))]
    times = LatencyTable({100: 1.0, 700: 7.0})
    found = achieved(stages, llava(), visual=576, text=95, latency=times)
    assert found["tokens"] == 288
    assert found["ratio"] == 0.5
    assert found["average"] == 432
    assert found["average_share"] == 0.75
    assert found["kv_bytes"] == 16 * ((576 + 95) + (288 + 95)) * 2 * 4096 * 2
    assert found["kv"] == pytest.approx((671 + 383) / (2 * 671))
    assert found["latency"] == pytest.approx((671 + 383) / (2 * 671))
    assert achieved((), llava(), visual=576, text=95)["flops"] == 1


@pytest.mark.parametrize(
    ("budget", "keep"),
    [
        (Budget(tokens=64), 64),
        (Budget(ratio=0.1), 57),
        (Budget(average=0.25), 144),
        (Budget(average=100), 100),
        (Budget(kv=0.5), 240),  # (240 + 95) / 671 <= 0.5
        (Budget(kv=32 * 4096 * 4 * (95 + 99)), 99),
        (Budget(latency=0.5), 240),
    ],
    ids=str,
)
def test_every_budget_on_a_method_before_the_language_model(budget: Budget, keep: int) -> None:
    times = LatencyTable({1: 1.0, 1000: 1000.0})
    solved = budget.solve(policies.FasterVLM(), llava(), visual=576, text=95, latency=times)
    assert solved.setting == {"keep": keep}
    assert Budget.parse(str(budget)) == budget


def test_what_is_turned() -> None:
    late = Budget(flops=0.5).solve(policies.VTW(), llava(), visual=576, text=20)
    assert late.setting == {"layer": 15}
    assert late.achieved["tokens"] == 0
    stages = [Stage("input", policies.Random(), Keep(ratio=0.5)), Stage("decoder.8", policies.Norm(), Keep(ratio=0.25))]
    scaled = Budget(average=0.2).solve(stages, 32, visual=576)
    first, last = (stage.count(576) for stage in scaled.stages)
    assert first is not None
    assert last is not None
    assert abs(first - 2 * last) <= 1
    assert scaled.setting == {"last stage": last}
    assert scaled.stages == match_average(stages, 0.2 * 576, visual=576, depth=32)
    alone = Budget(tokens=9).solve(policies.Norm(), 4, visual=36)
    assert [(stage.site, stage.count(36)) for stage in alone.stages] == [("input", 9)]
    adaptive = Budget(tokens=64).solve(policies.PruMerge(), Shape(32, 24, 22), visual=576)
    assert adaptive.setting == {"keep": 64}
    released = Budget(tokens=64).solve(policies.DivPrune(variant="released"), 32, visual=576)
    assert released.achieved["tokens"] <= 64
    assert isinstance(released.setting["keep"], float)


@dataclass(frozen=True)
class Later(Method):
    """A method of one's own whose knob is not called `keep`: it prunes to a tenth before a layer."""

    layer: int = 1

    knob = "layer"

    def stages(self, depth: int) -> tuple[Stage, ...]:
        return (Stage(f"decoder.{self.layer}", policies.Norm(), Keep(ratio=0.1)),)


@settings(max_examples=40, deadline=None)
@given(share=st.floats(0.05, 1.0), visual=st.integers(10, 700), depth=st.integers(3, 40))
def test_a_knob_of_ones_own(share: float, visual: int, depth: int) -> None:
    """Layer k costs k dense layers and depth - k short ones."""
    short = int(0.1 * visual * (1 + 1e-12))
    averages = {k: (k * visual + (depth - k) * short) / depth for k in range(1, depth)}
    within = [k for k, average in averages.items() if average <= share * visual * (1 + 1e-9)]
    if not within:
        with pytest.raises(BudgetError, match=r"Later cannot reach .*\(layer=1\)"):
            Budget(average=share).solve(Later(), depth, visual=visual)
        return
    assert Budget(average=share).solve(Later(), depth, visual=visual).setting == {"layer": max(within)}


def test_a_method_that_takes_only_some_settings() -> None:
    """Stage 1 of this STAR keeps 100: more than that cannot stay after stage 2."""
    method = policies.STAR(visual_keep=100)
    solved = Budget(average=0.9).solve(method, 32, visual=576)
    assert solved.setting == {"keep": 100}
    assert average_tokens(solved.stages, 576, 32) == 100
    tome = Budget(tokens=40).solve(policies.ToMe(), Shape(32, 2, 1), visual=144)
    assert tome.setting == {"keep": 40}
    with pytest.raises(BudgetError, match=r"cannot reach 20 .*the nearest is 36 \(keep=36\).*its range is 36 to 144"):
        Budget(tokens=20).solve(policies.ToMe(), Shape(32, 2, 1), visual=144)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "takes exactly one of tokens, ratio, average, flops, kv, latency; given none"),
    "two": ({"flops": 0.5, "kv": 0.5}, "exactly one of .*; given flops, kv"),
    "zero": ({"flops": 0}, r"Budget\(flops=0\): 0 is no budget; give a share"),
    "negative": ({"average": -3}, "-3 is no budget"),
    "not a number": ({"kv": float("nan")}, "nan is no budget"),
    "a flag": ({"tokens": True}, "True is no budget"),
    "text": ({"flops": "half"}, "half is no budget"),
    "above dense": ({"flops": 1.2}, "1.2 is above 1; a share is at most 1.0"),
    "a share of time above 1": ({"latency": 2}, "2 is above 1"),
    "an average with a point": ({"average": 36.5}, "36.5 is above 1; .*a number is written without a point"),
    "half a token": ({"tokens": 0.5}, "give a whole number; a share is written ratio=0.5"),
}


@pytest.mark.parametrize(("fields", "message"), WRONG.values(), ids=WRONG)
def test_what_is_no_budget(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        Budget(**fields)


@pytest.mark.parametrize("text", ["flop=0.3", "flops", "flops=x", "0.3", "kv=0"])
def test_texts_that_are_no_budget(text: str) -> None:
    with pytest.raises(BudgetError, match="is no budget"):
        Budget.parse(text)
    with pytest.raises(BudgetError, match=r"Did you mean 'flops'\?"):
        Budget.parse("flop=0.3")


OUT: dict[str, tuple[Budget, Any, Any, str]] = {
    "tokens above all": (Budget(tokens=600), policies.FastV(), 32, "600 visual tokens are asked for, .* has only 576"),
    "average above all": (Budget(average=600), policies.FastV(), 32, "600 visual tokens per layer are asked for"),
    "out of reach": (
        Budget(average=0.05),
        policies.FastV(),
        32,
        r"FastV cannot reach 28.8 visual tokens per decoder layer; the nearest is 36.9375 \(keep=1\); on 32 layers and"
        r" 576 tokens its range is 36.9375 to 576.",
    ),
    "tokens of VTW": (Budget(tokens=64), policies.VTW(), 32, r"VTW cannot reach 64 .*; the nearest is 0 \(layer=1\)"),
    "the data decide, by tiles": (
        Budget(average=0.25),
        policies.HiRED(0.3, tiles=True),
        32,
        "HiRED as configured lets the data decide how many tokens stay at 'input'",
    ),
    "FLOPs without a model": (Budget(flops=0.5), policies.FastV(), 32, "FLOPs need a cost model"),
    "bytes without a model": (Budget(kv=1000), policies.FastV(), 32, "the KV cache needs a cost model"),
    "time without times": (Budget(latency=0.5), policies.FastV(), 32, "a time needs measurements"),
}


@pytest.mark.parametrize(("budget", "items", "model", "message"), OUT.values(), ids=OUT)
def test_what_cannot_be_reached(budget: Budget, items: Any, model: Any, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        budget.solve(items, model, visual=VISUAL)


def test_more_bytes_than_the_dense_cache_has() -> None:
    with pytest.raises(BudgetError, match=r"the dense cache has only 302,514,176 bytes for 576 visual and 1 other"):
        Budget(kv=10**10).solve(policies.FastV(), llava(), visual=576, text=1)


def test_times() -> None:
    table = LatencyTable({10: 1.0, 20: 3.0, 40: 5.0})
    assert table([10, 15, 30]) == 1 + 2 + 4
    with pytest.raises(BudgetError, match="a layer of 41 tokens was not measured; measured are 10 to 40"):
        table([41])
    for wrong in ({10: 1.0}, {10: 1.0, 20: 0.0}):
        with pytest.raises(BudgetError, match="at least two lengths"):
            LatencyTable(wrong)

    def squared(lengths: Sequence[int]) -> float:
        return float(sum(n * n for n in lengths))

    solved = Budget(latency=0.25).solve(policies.FasterVLM(), 32, visual=100, latency=squared)
    assert solved.setting == {"keep": 50}


def test_an_unknown_encoder_is_not_charged_as_nothing() -> None:
    model = CostModel(Shape(32, 24, 22), llava().decoder)
    with pytest.raises(BudgetError, match="SelfAttention reads attention of the vision encoder, whose cost is not"):
        Budget(flops=0.5).solve(policies.FasterVLM(), model, visual=576)
    assert Budget(flops=0.5).solve(policies.FastV(), model, visual=576).achieved["flops"] <= 0.5


# --- against the trace ------------------------------------------------------------------------------------------------


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


# --- experiments ------------------------------------------------------------------------------------------------------


METHODS = {"Random": "Random", "FastV": {"class_path": "FastV", "init_args": {"layer": 1}}, "VTW": "VTW"}
BUDGETS = [{"flops": 0.5}, {"kv": 0.4}, {"tokens": 20}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with several measures."""
    home = tmp_path_factory.mktemp("budgets")
    task = {"class_path": "Scenes", "init_args": {"scenes": 1}}
    file = write(home / "a.yaml", task=task, methods=METHODS, budgets=BUDGETS, unreachable="skip")
    run(load_experiment(file), home / "out")
    return home / "out"


def test_rows_by_several_measures(folder: Path) -> None:
    found = {(row["name"], row["budget"]): row for row in result(folder)["methods"]}
    budgets = ("flops=0.5", "kv=0.4", "tokens=20")
    assert set(found) == {("dense", None), *((name, budget) for name in METHODS for budget in budgets)}
    assert found["dense", None]["achieved"]["flops"] == 1
    assert 0.48 < found["Random", "flops=0.5"]["achieved"]["flops"] <= 0.5
    assert 0.38 < found["FastV", "kv=0.4"]["achieved"]["kv"] <= 0.4
    assert found["FastV", "tokens=20"]["final_visual_tokens"] == 20
    assert found["VTW", "tokens=20"]["accuracy"] is None
    for (name, budget), row in found.items():
        if row["accuracy"] is not None and name != "dense":
            assert row["achieved"]["average"] == pytest.approx(row["average_visual_tokens"]), (name, budget)


def test_results_are_found_by_their_budgets(folder: Path) -> None:
    read = Result.read(folder / "result.json")
    assert read["Random", Budget(flops=0.5)] is read["Random", "flops=0.5"]
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert all(label in report for label in ("50 % of FLOPs", "40 % of KV", "20 at the end"))


def test_the_resolved_experiment_says_the_same(folder: Path) -> None:
    again = load_experiment(folder / "config.yaml")
    assert again.budgets == [Budget(flops=0.5), Budget(kv=0.4), Budget(tokens=20)]
    assert resolved(again)["budgets"] == BUDGETS


@pytest.mark.parametrize(
    ("amount", "label"),
    [
        (None, ""),
        (0.15, "15 %"),
        (36, "36 tokens"),
        ("average=0.25", "25 %"),
        ("flops=0.3", "30 % of FLOPs"),
        ("kv=1000000", "1,000,000 bytes of KV"),
        ("kv=0.2", "20 % of KV"),
        ("ratio=0.1", "10 % at the end"),
        ("tokens=64", "64 at the end"),
    ],
)
def test_labels(amount: Any, label: str) -> None:
    assert amount_label(amount) == label


BAD: dict[str, tuple[list[Any], str]] = {
    "a misspelt measure": ([{"flop": 0.3}], r"budgets\[0\].flop: not accepted; allowed are .*Did you mean 'flops'"),
    "two measures": ([{"flops": 0.3, "kv": 0.2}], r"budgets\[0\].*exactly one of"),
    "above dense": ([{"flops": 1.5}], r"budgets\[0\].*1.5 is above 1"),
    "a number in words": ([{"flops": "much"}], r"budgets\[0\].flops: expected a number, given 'much'"),
    "twice": ([0.25, {"average": 0.25}], r"budgets\[1\]: average=0.25 is listed twice"),
    "time": ([{"latency": 0.5}], r"budgets\[0\]: an experiment has no measured times"),
    "more tokens than there are": ([{"tokens": 200}], "methods.Random at budget tokens=200: .*has only 144"),
    "out of reach": ([{"flops": 0.01}], "methods.Random at budget flops=0.01: this list of stages cannot reach 0.01"),
}


@pytest.mark.parametrize(("budgets", "message"), BAD.values(), ids=BAD)
def test_bad_budgets(budgets: list[Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "run", write(tmp_path / "a.yaml", budgets=budgets), "--output", tmp_path / "out")
    assert re.search(message, said), said


def test_budgets_on_the_command_line(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path / "a.yaml"), ["--budgets", "[{kv: 0.3}, 36]"])
    assert experiment.budgets == [Budget(kv=0.3), 36]


def test_from_python() -> None:
    experiment = Experiment(methods={"Random": policies.Random()}, task=Scenes(scenes=1), budgets=[Budget(flops=0.5)])
    assert resolved(experiment)["budgets"] == [{"flops": 0.5}]
