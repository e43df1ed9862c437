"""Traced operations equal the closed form to the last one, and torch's own counter; wrong counts are noticed."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from catalogue import ATTENTION, POLICIES, Items, subject
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from prunekit import Keep, Needs, Rows, ScoringPolicy, Stage, VisualTokens, prune
from prunekit.budget import tokens_per_layer
from prunekit.costs.closed_form_text import Decoder, Encoder, embedding_attention
from prunekit.costs.trace_graph import HANDLES, analyse, attention_macs, matmul_macs
from prunekit.errors import SessionError, UnsupportedModelError
from prunekit.flops import Cost, closed_form, count
from prunekit.plan import Plan
from prunekit.policies import STAR, FastV, SelfAttention

LAYOUTS = {
    "single": {"batch": 1, "images": 1, "text": 6},
    "batch of two images each": {"batch": 2, "images": 2, "text": 9},
}
KEEP = Keep(ratio=0.25)


def torch_counts(model: nn.Module, inputs: dict[str, Tensor], items: Items) -> int:
    """What torch's own counter finds, attention split into its matrix products."""
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), prune(model, *items), counter, sdpa_kernel(SDPBackend.MATH):
        model(**inputs, logits_to_keep=1)
    return counter.get_total_flops()


def expected(model: Any, items: Items, batch: int, images: int, text: int) -> Cost:
    """The closed form of a plan, its policies' work included, by walking through the stages in order."""
    eyes, language = Encoder.of(model.config.vision_config), Decoder.of(model.config.text_config)
    depth = model.config.text_config.num_hidden_layers
    plan = Plan.of(items, depth)
    other, after, samples = text + images + 2, text + 1, images * batch
    total = images * eyes.patches
    encoder, visual = [eyes.patches] * eyes.depth, [total] * depth
    scorers: Counter[str] = Counter()
    read: set[tuple[int, Rows]] = set()
    for stage in plan.stages:
        part, index = stage.where.part, stage.where.index
        here = encoder[index] * images if part == 0 else visual[index]
        for rows in stage.policy.needs.attention:
            if rows.of_vision:
                layer = index if part == 0 else model.config.vision_feature_layer + eyes.depth
                queries = encoder[layer] if rows.queries == "visual" else 1
                macs = samples * eyes.rows(queries, encoder[layer] + 1)
                name = f"vision.{layer}"
            else:
                layer = index - 1
                queries = 1 if rows.queries == "last" else after
                macs = batch * language.rows(queries, visual[layer] + other)
                name = f"decoder.{layer}"
            if (layer, rows) not in read:
                scorers[name] += macs
            read.add((layer, rows))
        if getattr(stage.policy, "queries", None) == "embedding":
            scorers[stage.site] += batch * embedding_attention(here, language.hidden)
        kept = stage.count(total)
        assert kept is not None
        if part == 0:
            per_image = stage.count(eyes.patches)
            assert per_image is not None
            encoder[index + 1 :] = [per_image] * (eyes.depth - index - 1)
            kept = images * per_image
        visual[index * (part == 2) :] = [kept] * (depth - index * (part == 2))
    lengths = [tokens + 1 for tokens in encoder]
    return closed_form(
        model, visual, other, images=images, batch=batch, encoder=lengths, scorers=dict(sorted(scorers.items()))
    )


@pytest.mark.parametrize(
    ("attention", "policy"),
    [*(("sdpa", name) for name in POLICIES), *(("eager", name) for name in ("fastv", "star", "every-site"))],
)
def test_trace_is_the_closed_form(attention: str, policy: str) -> None:
    model, layout = subject("llava", attention), LAYOUTS["batch of two images each"]
    items = POLICIES[policy].build(KEEP)
    cost = count(model.model, model.make_inputs(**layout), items)
    formula = expected(model.model, items, **layout)
    assert cost.macs == formula.macs
    assert cost.prefill_per_layer == formula.prefill_per_layer
    assert sorted(cost.scorers.values()) == sorted(formula.scorers.values())
    assert cost.visual_tokens_per_layer == formula.visual_tokens_per_layer


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("attention", ATTENTION)
def test_dense_is_the_closed_form(attention: str, layout: dict[str, int]) -> None:
    model = subject("llava", attention)
    cost = count(model.model, model.make_inputs(**layout))
    formula = expected(model.model, (), **layout)
    assert (cost.macs, cost.prefill_per_layer) == (formula.macs, formula.prefill_per_layer)
    assert cost.macs["scorer"] == 0
    assert cost.scorers == {}


@pytest.mark.parametrize(
    ("attention", "policy"), [("sdpa", "star"), ("sdpa", "self-embedding-input"), ("eager", "every-site")]
)
def test_torch_counts_the_same(attention: str, policy: str) -> None:
    model = subject("llava", attention)
    inputs = model.make_inputs(batch=2, text=(3, 8))
    items = POLICIES[policy].build(KEEP)
    assert count(model.model, inputs, items).flops == torch_counts(model.model, inputs, items)


def test_visual_tokens_are_those_of_the_plan() -> None:
    model = subject("llava", "sdpa")
    cost = count(model.model, model.make_inputs(), STAR(keep=0.25))
    assert cost.visual_tokens_per_layer == tokens_per_layer(STAR(keep=0.25), 36, 4)
    ragged = model.make_inputs(batch=2, images=[1, 2], text=(6, 6))
    assert count(model.model, ragged, FastV(keep=0.25)).visual_tokens_per_layer == (108, 108, 27, 27)


def test_what_runs_in_vain_is_counted() -> None:
    """The encoder's last layer feeds nothing, and scores decide nothing where all tokens stay; both take time."""
    model = subject("llava", "sdpa")
    inputs = model.make_inputs()
    dense, all_kept = (count(model.model, inputs, items) for items in (None, STAR(keep=1.0, visual_keep=1.0)))
    assert all_kept.macs["scorer"] > 0
    assert {**all_kept.macs, "scorer": 0} == dense.macs
    eyes = Encoder.of(model.model.config.vision_config)
    assert dense.macs["vision"] == eyes.embedding() + 4 * eyes.layer(37)


def test_the_output_head() -> None:
    model = subject("llava", "sdpa")
    inputs = model.make_inputs(batch=2)
    rows = [count(model.model, inputs, logits_to_keep=keep).macs["lm_head"] for keep in (1, 5, 0)]
    assert rows == [32 * 64 * 2 * n for n in (1, 5, inputs["input_ids"].shape[1])]


# --- the formulas of single operators ---------------------------------------------------------------------------------


class Attend(nn.Module):
    """Attention with two query heads to a key head, which the kernel itself shares out."""

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor]:
        return (nn.functional.scaled_dot_product_attention(query, key, value, enable_gqa=True),)


def test_grouped_queries_are_counted_per_query_head() -> None:
    query, key = torch.randn(2, 8, 5, 4), torch.randn(2, 4, 7, 4)
    tensors = {"query": query, "key": key, "value": key}
    counts, uncounted = analyse(Attend(), tensors, {})
    assert dict(counts) == {"model": 2 * (2 * 8 * 5 * 7 * 4)}  # Q K^T and A V
    assert not uncounted
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        Attend()(**tensors)
    assert counter.get_total_flops() == 2 * sum(counts.values())


def test_kernels_that_share_out_the_keys_cost_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers expands keys and values on some devices and leaves it to the kernel on others."""
    model = subject("llava", "sdpa")
    inputs = model.make_inputs()
    before = count(model.model, inputs, STAR())
    monkeypatch.setenv("TRANSFORMERS_SDPA_FORCE_GQA", "1")
    assert count(model.model, inputs, STAR()).macs == before.macs


def test_a_wrong_formula_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison has power: heads from the keys, or half of the attention, do not pass."""
    model = subject("llava", "sdpa")
    inputs, name = model.make_inputs(), "aten::scaled_dot_product_attention"
    monkeypatch.setenv("TRANSFORMERS_SDPA_FORCE_GQA", "1")
    right = expected(model.model, (), **LAYOUTS["single"])
    for wrong in (
        lambda q, k, v: attention_macs((*q[:1], *k[1:2], *q[2:]), k, v),
        lambda q, k, v: attention_macs(q, k, v) // 2,
    ):
        monkeypatch.setitem(HANDLES, name, lambda i, o, wrong=wrong: wrong(*(v.type().sizes() for v in i[:3])))
        assert count(model.model, inputs).prefill_per_layer != right.prefill_per_layer


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((1, 3, 4), (2, 4, 5)),
        ((2, 3, 2, 3, 4), (2, 3, 1, 4, 5)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((4,), (4,)),
    ],
)
def test_matrix_products(first: tuple[int, ...], second: tuple[int, ...]) -> None:
    result = torch.zeros(first) @ torch.zeros(second)
    assert matmul_macs(first, second) == result.numel() * first[-1]


# --- what is told apart, left out and left behind ---------------------------------------------------------------------


class Projecting(ScoringPolicy):
    """Does a matrix product of its own, and asks shapes for Python numbers as any code does."""

    needs = Needs(Rows("last", reduce="mean"))

    def score(self, tokens: VisualTokens) -> Tensor:
        batch, visual, width = tokens.hidden.shape
        assert {visual: "a key", divmod(width, 2): "another"}[visual] == "a key"
        noise = torch.einsum("bvd,de->bve", tokens.hidden, torch.ones(width, 3)).sum(-1) * 1e-6
        return tokens.attention["last"].masked_fill(torch.zeros(batch, visual).bool(), True) + noise


def test_a_policys_own_work_is_told_apart() -> None:
    model = subject("llava", "sdpa")
    inputs = model.make_inputs()
    both = Stage("decoder.2", Projecting(), KEEP), FastV(keep=KEEP)
    cost, fastv = (count(model.model, inputs, items) for items in both)
    assert cost.scorers["decoder.2"] == 36 * 32 * 3
    assert cost.macs["scorer"] == sum(cost.scorers.values()) == fastv.macs["scorer"] + 36 * 32 * 3
    assert cost.prefill_per_layer == fastv.prefill_per_layer


def test_the_uncounted_is_listed() -> None:
    model = subject("llava", "eager")
    cost = count(model.model, model.make_inputs(), STAR())
    assert cost.uncounted["aten::softmax"] == 4 + 4 + 2  # of the encoder, the decoder, and the two stages
    assert {"aten::layer_norm", "aten::silu", "aten::argsort"} <= cost.uncounted.keys()
    assert not cost.uncounted.keys() & HANDLES.keys()


def test_a_cost_is_plain_data() -> None:
    cost = closed_form(subject("llava", "sdpa").model, [36] * 4, 9)
    data = json.loads(json.dumps(cost.to_dict()))
    assert data["flops"] == 2 * data["total_macs"] == 2 * sum(cost.macs.values()) == cost.flops
    assert data["visual_tokens_per_layer"] == [36] * 4


def test_inside_a_session_its_pruning_is_counted() -> None:
    model = subject("llava", "sdpa")
    inputs = model.make_inputs()
    with prune(model.model, STAR()):
        inside = count(model.model, inputs)
        with pytest.raises(SessionError, match="already being pruned"):
            count(model.model, inputs, STAR())
    with torch.inference_mode():
        assert inside == count(model.model, inputs, STAR())


@dataclass(frozen=True)
class Dividing(ScoringPolicy):
    by: int

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.source / float(1 // self.by)


def hooks_and_modes(model: nn.Module) -> list[Any]:
    return [(list(m._forward_hooks), list(m._forward_pre_hooks), m.training) for m in model.modules()]


@pytest.mark.parametrize("fails", [False, True])
def test_the_model_is_left_as_it_was(fails: bool) -> None:
    model, inputs = subject("llava", "sdpa").model, subject("llava", "sdpa").make_inputs()
    model.model.language_model.layers[1].train()
    before, config = hooks_and_modes(model), repr(model.config)
    try:
        with pytest.raises(ZeroDivisionError) if fails else nullcontext():
            count(
                model,
                inputs,
                (Stage("input", SelfAttention(), KEEP), Stage("decoder.2", Dividing(int(not fails)), KEEP)),
            )
        assert (hooks_and_modes(model), repr(model.config)) == (before, config)
    finally:
        model.eval()


def test_attention_that_no_trace_sees_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = subject("llava", "sdpa").model
    monkeypatch.setattr(model.config.text_config, "_attn_implementation", "flash_attention_2")
    with pytest.raises(UnsupportedModelError, match=r"'flash_attention_2'.*set_attn_implementation\('sdpa'\)"):
        count(model, {})


def test_the_closed_form_knows_its_encoder() -> None:
    from transformers import SegformerConfig

    with pytest.raises(UnsupportedModelError, match="'segformer'"):
        Encoder.of(SegformerConfig())
