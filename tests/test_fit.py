"""Fitting: FitPrune's schedule and VTW's layer, as pure functions and on models."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from catalogue import subject
from snapshots import differences, snapshot
from torch import Tensor

from prunekit import Keep, Stage, flops, prune
from prunekit.errors import BudgetError, DataError, NeedsError, ScoresError, SiteError
from prunekit.evaluation import Scenes
from prunekit.evaluation.data import collate
from prunekit.fitting import Costs, fit_schedule, search_layer
from prunekit.models import tiny
from prunekit.policies import VTW, FitPrune, Random

# --- the pure functions ----------------------------------------------------------------------------------------------


def plainly(epsilon: float, image: Tensor, text: Tensor, counts: list[int]) -> list[int]:
    """What `FitPrune.within` computes, token by token."""
    visual = max(counts)
    alive = [set(range(n)) for n in counts]
    left, deletions = visual, []
    for layer in range(len(image)):
        for keep in range(1, left + 1):
            lost, stay = {"image": 0.0, "text": 0.0}, []
            for row, n in enumerate(counts):
                scores = {i: float(image[layer, row, i] * text[layer, row, i]) for i in alive[row]}
                best = sorted(alive[row], key=lambda i: (-scores[i], i))[: max(1, n * keep // visual)]
                stay.append(set(best))
                for name, mass in (("image", image), ("text", text)):
                    every = sum(float(mass[layer, row, i]) for i in alive[row])
                    lost[name] += (1 - sum(float(mass[layer, row, i]) for i in best) / every) / len(counts)
            if max(lost.values()) <= epsilon:
                break
        deletions.append(left - keep)
        left, alive = keep, stay
    return [*deletions, 0]


@pytest.mark.parametrize("counts", [[9], [12, 12, 12], [12, 5, 8, 1]])
@pytest.mark.parametrize("epsilon", [0.0, 0.05, 0.2, 0.5, 0.9, 1.0])
def test_within_equals_plain_loops(counts: list[int], epsilon: float) -> None:
    draw = torch.Generator().manual_seed(len(counts))
    image, text = torch.rand(2, 5, len(counts), max(counts), generator=draw) ** 3
    found = FitPrune.within(epsilon, image, text, counts)
    assert list(found.deletions) == plainly(epsilon, image, text, counts)
    assert found.visual == max(counts)
    if epsilon in (0.0, 1.0):
        assert found.deletions == ((0,) * 6 if epsilon == 0 else (max(counts) - 1, 0, 0, 0, 0, 0))


def test_what_lies_beyond_a_sample_is_not_read() -> None:
    image, text = torch.rand(2, 4, 2, 10, generator=torch.Generator().manual_seed(0))
    padded = [mass.clone() for mass in (image, text)]
    for mass in padded:
        mass[:, 1, 6:] = 1e6
    for epsilon in (0.1, 0.4):
        assert FitPrune.within(epsilon, *padded, [10, 6]) == FitPrune.within(epsilon, image, text, [10, 6])


def test_a_token_goes_only_if_both_masses_allow_it() -> None:
    """Token 0 holds nothing of the text's attention, but half of the image's."""
    image, text = torch.tensor([0.5, 0.2, 0.2, 0.1]), torch.tensor([0.0, 0.4, 0.4, 0.2])
    masses = image[None, None], text[None, None]
    assert FitPrune.within(0.45, *masses, [4]).deletions == (0, 0)
    assert FitPrune.within(0.55, *masses, [4]).deletions == (1, 0)


def test_the_bound_is_the_lowest_that_saves_enough() -> None:
    image, text = torch.rand(2, 6, 3, 20, generator=torch.Generator().manual_seed(1)) + 0.1

    def saves(method: FitPrune) -> float:
        return sum(n * (6 - i) for i, n in enumerate(method.deletions)) / 140

    found, epsilon = FitPrune.fit(image, text, [20] * 3, 0.4, saves)
    assert saves(found) >= 0.4
    assert found == FitPrune.within(epsilon, image, text, [20] * 3)
    assert saves(FitPrune.within(epsilon - 1e-6, image, text, [20] * 3)) < 0.4
    with pytest.raises(BudgetError, match=r"saving=0\.9: .* up to 0\.8143 can be reached"):
        FitPrune.fit(image, text, [20] * 3, 0.9, saves)
    for wrong in (0.0, 1.0, -0.5, float("nan")):
        with pytest.raises(BudgetError, match="above 0 and below 1"):
            FitPrune.fit(image, text, [20] * 3, wrong, saves)


# --- on models -------------------------------------------------------------------------------------------------------


@cache
def bundled() -> tuple[Any, tuple[dict[str, Tensor], ...]]:
    """The bundled model and some development samples, one by one."""
    model, processor = tiny.load()
    task = Scenes(split="development", scenes=3)
    return model, tuple(collate(processor, [task[number]]) for number in (0, 3, 9, 22))


@pytest.mark.parametrize("saving", [0.55])
def test_a_schedule_saves_what_was_asked_for(saving: float) -> None:
    """By the count of the real pruned prefill, which the fit did not make."""
    model, inputs = bundled()
    fit = fit_schedule(model, inputs[:2], saving)
    dense, pruned = (
        sum(flops.count(model, each, plan).macs["prefill"] for each in inputs[:2]) for plan in (None, fit.method)
    )
    assert 1 - pruned / dense == pytest.approx(fit.saving, abs=1e-9)
    assert saving <= fit.saving < saving + 0.02
    assert flops.count(model, inputs[0], fit.method).visual_tokens_per_layer == fit.visual_tokens_per_layer
    assert (fit.samples, fit.method.visual, len(fit.method.deletions)) == (2, 144, 8)


def test_it_deletes_what_the_reading_says() -> None:
    """The first stage of the fitted method keeps the best of what an unpruned session scores."""
    model, inputs = bundled()
    fit = fit_schedule(model, inputs, 0.5)
    with torch.no_grad(), prune(model, fit.method) as session:
        model(**inputs[0])
    shares = []
    for record in session.trace:
        rest = record.scores.nansum()
        shares.append(1 - record.scores.gather(1, record.kept).sum() / rest)
    assert len(shares) == sum(n > 0 for n in fit.method.deletions[:-1])
    assert max(shares) < 2 * fit.epsilon  # a loose bound: scores are products, and of a pruned model


FAMILIES = ("llava", "qwen2_5_vl", "gemma3")


@pytest.mark.parametrize("family", FAMILIES)
def test_costs_are_those_of_every_family(family: str) -> None:
    """Two lengths tell the factors of every layer: a third length agrees, also in a padded batch."""
    model = subject(family, "sdpa")
    inputs = model.make_inputs(batch=2, images=(1, 2), text=(4, 7))
    plan = Stage("input", Random(), Keep(tokens=3))
    with torch.no_grad(), prune(model.model, plan) as session:
        model.model(**inputs)
    visual = session.trace[-1].visual
    text = [int(real) - seen for real, seen in zip(inputs["attention_mask"].sum(1), visual, strict=True)]
    costs = Costs.measure(model.model, inputs, visual, text)
    length = max(text) + 3
    for counted, one, pair in zip(
        flops.count(model.model, inputs, plan).prefill_per_layer, costs.linear, costs.quadratic, strict=True
    ):
        assert counted == pytest.approx(2 * (one * length + pair * length**2), rel=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_be_fitted(family: str) -> None:
    model = subject(family, "sdpa")
    inputs = model.make_inputs(batch=2, images=(1, 2), text=(4, 7))
    before = snapshot(model.model)
    fit = fit_schedule(model.model, [inputs], 0.2)
    assert fit.saving >= 0.2
    assert fit.samples == 2
    assert search_layer(model.model, [inputs], 1e-6, first=1).method.layer is not None
    assert differences(before, snapshot(model.model)) == []
    with torch.no_grad(), prune(model.model, fit.method):
        model.model(**inputs)


def test_a_batch_counts_as_its_samples() -> None:
    model = subject("llava", "sdpa")
    batch = model.make_inputs(batch=3, images=(1, 2, 1), text=(4, 7, 5))
    together, alone = fit_schedule(model.model, [batch], 0.3), fit_schedule(model.model, batch.rows, 0.3)
    assert together.method == alone.method
    assert together.saving == pytest.approx(alone.saving, abs=1e-9)
    states = [search_layer(model.model, each, 1e-6, first=2).similarity for each in ([batch], batch.rows)]
    assert states[0] == pytest.approx(states[1], abs=1e-5)


def test_text_alone_is_nothing_to_fit_on() -> None:
    model, inputs = bundled()
    text = {"input_ids": torch.tensor([[1, 5, 6]]), "attention_mask": torch.ones(1, 3, dtype=torch.long)}
    before = snapshot(model)
    for batches in ([], [text]):
        with pytest.raises(DataError, match="no sample has visual tokens"):
            fit_schedule(model, batches, 0.5)
        with pytest.raises(DataError, match="no sample has visual tokens"):
            search_layer(model, batches, 0.5)
    assert differences(before, snapshot(model)) == []
    mixed = fit_schedule(model, [text, *inputs], 0.5)
    assert mixed == fit_schedule(model, inputs, 0.5)


def test_text_must_follow_the_image() -> None:
    model, inputs = bundled()
    end = int((inputs[0]["input_ids"][0] == model.config.image_token_id).nonzero().max()) + 1
    cut = {name: value if name == "pixel_values" else value[:, :end] for name, value in inputs[0].items()}
    with pytest.raises(NeedsError, match="text after the image"):
        fit_schedule(model, [cut], 0.5)


def test_attention_must_be_finite() -> None:
    model = subject("llava", "sdpa")
    inputs = model.make_inputs()
    with torch.no_grad():
        weight = model.model.get_submodule(model.family.decoder_layers)[0].self_attn.q_proj.weight
        kept = weight.clone()
        try:
            weight.fill_(float("nan"))
            with pytest.raises(ScoresError, match="not finite"):
                fit_schedule(model.model, [inputs], 0.5)
        finally:
            weight.copy_(kept)


def test_nothing_is_left_after_a_failure() -> None:
    model, inputs = bundled()
    before = snapshot(model)

    def broken() -> Any:
        yield inputs[0]
        raise KeyboardInterrupt

    for fit in (lambda: fit_schedule(model, broken(), 0.5), lambda: search_layer(model, broken(), 0.5)):
        with pytest.raises(KeyboardInterrupt):
            fit()
        assert differences(before, snapshot(model)) == []


def test_the_search_compares_last_states() -> None:
    """By hand, from the hidden states that transformers hands out."""
    model, inputs = bundled()
    found = search_layer(model, inputs[:2], 0.9, first=2)

    @torch.no_grad()
    def last(each: dict[str, Tensor], *methods: Any) -> Tensor:
        states: list[Tensor] = []
        handle = model.lm_head.register_forward_pre_hook(lambda module, args: states.append(args[0]))
        if methods:
            with prune(model, *methods):
                model(**each)
        else:
            model(**each)
        handle.remove()
        return states[0][0, -1]

    for layer, value in found.similarity.items():
        cosines = [torch.cosine_similarity(last(each), last(each, VTW(layer)), dim=0) for each in inputs[:2]]
        assert value == pytest.approx(float(sum(cosines)) / 2, abs=1e-5)
    assert sorted(found.similarity) == list(range(2, 8))
    assert found.method.layer == min(layer for layer, value in found.similarity.items() if value >= 0.9)


def test_the_last_token_stands_before_padding_at_the_right() -> None:
    model, inputs = bundled()
    padded = {name: value for name, value in inputs[0].items() if name == "pixel_values"}
    padded |= {name: torch.nn.functional.pad(inputs[0][name], (0, 3)) for name in ("input_ids", "attention_mask")}
    plain, right = (search_layer(model, [each], 0.1, first=3).similarity for each in (inputs[0], padded))
    assert plain == pytest.approx(right, abs=1e-5)


def test_a_search_that_cannot_be() -> None:
    model, inputs = bundled()
    for first in (0, 8):
        with pytest.raises(SiteError, match=f"first={first}: .* allows 1 to 7"):
            search_layer(model, inputs, 0.5, first)
    for threshold in (0.0, 1.5):
        with pytest.raises(BudgetError, match=f"threshold={threshold}: a mean cosine"):
            search_layer(model, inputs, threshold)
    with pytest.raises(BudgetError, match="no layer from 1 to 3"):
        VTW.search(torch.ones(1, 2), torch.tensor([[[1.0, 0.0]]] * 3), 0.9, first=1)
