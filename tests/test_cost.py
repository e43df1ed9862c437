"""Counts on the meta device equal those on weights, for every family; presets, decoding, caches, and wrong requests."""

from __future__ import annotations

import gc
from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import pytest
import torch
from catalogue import subject
from torch import nn
from transformers import AutoModelForImageTextToText, DynamicCache, LlamaConfig, LlamaModel

from prunekit import Keep, Stage, conventions, cost, flops, prune
from prunekit.adapter import adapter_for
from prunekit.cache import CACHE
from prunekit.costs.decoding import activation_bytes
from prunekit.costs.known import KnownValues, known, to_meta
from prunekit.costs.repeats import RecordingCache, Repeats
from prunekit.costs.trace_graph import analyse
from prunekit.errors import (
    ConfigError,
    CostError,
)
from prunekit.policies import STAR, DivPrune, FastV, FlowCut, Random, SparseVLM
from prunekit.presets import presets

FAMILIES = (
    "llava", "vipllava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "paligemma",
    "gemma3", "idefics3", "smolvlm", "mistral3", "aya_vision", "ovis2", "molmo2", "glm4v",
    "video_llava", "perception_lm", "qwen3_vl_moe", "glm4v_moe",
)  # fmt: skip
METHODS = {
    "dense": None,
    "fastv": FastV(keep=0.5, layer=2),
    "sparsevlm": SparseVLM(keep=0.5, version="plus"),
    "divprune": DivPrune(keep=0.5),
}


def meta(model: Any) -> nn.Module:
    """The same model without weights."""
    attention = "eager" if model.config.model_type == "paligemma" else "sdpa"
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(model.config, attn_implementation=attention).eval()


CASES = [(family, method) for family in FAMILIES for method in METHODS if family in FAMILIES[:8] or method == "fastv"]


@pytest.mark.parametrize(("family", "method"), CASES)
def test_without_weights_the_count_is_the_same(family: str, method: str) -> None:
    model = subject(family, "sdpa")
    inputs = dict(model.make_inputs(batch=2, text=(6, 9)))
    real, bare = (flops.count(each, inputs, METHODS[method]) for each in (model.model, meta(model.model)))
    assert bare.macs == real.macs
    assert bare.prefill_per_layer == real.prefill_per_layer
    assert bare.scorers == real.scorers
    assert bare.visual_tokens_per_layer == real.visual_tokens_per_layer


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "qwen3_vl"])
def test_layers_that_are_passed_over_count_in_full(family: str) -> None:
    """Traced once and taken over for layers of the same build; operators without a formula, too."""
    real = subject(family, "sdpa")
    inputs = dict(real.make_inputs(batch=1, text=6))
    model = meta(real.model)
    adapter = adapter_for(model)
    repeats = Repeats(adapter)
    for items in ((), (FastV(keep=0.5, layer=2),), (Stage("decoder.1", Random(), Keep(ratio=0.25)),), ()):
        cache = RecordingCache(model.config.get_text_config(decoder=True))
        with torch.no_grad(), KnownValues():
            given = flops.on_device(model, inputs)
            found = flops.trace(adapter, given, items, repeats, logits_to_keep=1, **{CACHE: cache})
        assert found == flops.count(model, inputs, items)
        plain = DynamicCache(config=real.model.config.get_text_config(decoder=True))
        with torch.no_grad(), prune(real.model, *items) if items else nullcontext():
            real.model(**inputs, **{CACHE: plain})
        assert [layer.keys.shape for layer in cache.layers] == [layer.keys.shape for layer in plain.layers]


# --- decoding and caches ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["llava", "gemma3", "internvl", "paligemma"])
@pytest.mark.parametrize("items", [(), (FastV(keep=0.25, layer=2),)], ids=["dense", "fastv"])
def test_decoding_is_what_steps_cost(family: str, items: Any) -> None:
    """The closed form against traced steps of a model with weights, on the cache that its prefill left."""
    subject_ = subject(family, "sdpa")
    model, steps = subject_.model, 3
    inputs = dict(subject_.make_inputs(batch=2, text=(6, 6)))
    from prunekit.costs.decoding import Caches

    bones = meta(model)
    adapter = adapter_for(bones)
    recording = RecordingCache(bones.config.get_text_config(decoder=True))
    with torch.no_grad(), KnownValues():
        given = flops.on_device(bones, inputs)
        found = flops.trace(adapter, given, items, None, logits_to_keep=1, **{CACHE: recording})
    caches = Caches.of(adapter, recording, found, "float32")
    keys = DynamicCache(config=model.config.get_text_config(decoder=True))
    total = 0
    with torch.no_grad(), prune(model, *items) if items else nullcontext():
        model(**inputs, **{CACHE: keys})
        assert caches.bytes(0) == held(keys)
        mask = inputs["attention_mask"]
        for _ in range(steps):
            mask = torch.cat([mask, mask[:, -1:]], 1)
            step = {"input_ids": mask[:, -1:] * 9, "attention_mask": mask}
            counts, _ = analyse(model, step, {CACHE: keys, "use_cache": True, "return_dict": True})
            total += sum(counts.values())
    assert caches.decode_macs(steps) == total
    assert caches.bytes(steps) == held(keys)


def held(cache: DynamicCache) -> int:
    return sum(each.numel() * each.element_size() for layer in cache.layers for each in (layer.keys, layer.values))


def test_a_full_window_keeps_its_length() -> None:
    """Sliding layers of Gemma 3 hold a window, and steps read no more than that."""
    config = subject("gemma3", "sdpa").model.config
    window = config.text_config.sliding_window
    few, many = (cost(config, text_tokens=4, decode_tokens=steps, dtype="float32") for steps in (0, 2 * window))
    sliding = [kind == "sliding_attention" for kind in config.text_config.layer_types]
    assert any(sliding)
    assert not all(sliding)
    assert many.dense.kv_bytes == few.dense.kv_bytes
    grown = many.dense.kv_bytes_at_end - many.dense.kv_bytes
    text = config.text_config
    key = 2 * 4 * text.num_key_value_heads * text.head_dim  # keys and values of one token, in bytes
    free = sum(2 * window if not slides else max(0, window - 1 - length)
               for slides, length in zip(sliding, many.dense.kv_lengths, strict=True))  # fmt: skip
    assert grown == key * free


# --- presets ----------------------------------------------------------------------------------------------------------


def test_a_preset_counts_what_the_closed_form_says() -> None:
    """LLaVA-1.5-7B with 576 visual tokens and 95 others: the figures of docs/flops.md, and half a MiB a token."""
    found = cost("llava-1.5-7b", text_tokens=95)
    formula = flops.closed_form(build_config("llava-1.5-7b"), [576] * 32, text=95)
    assert {**found.dense.cost.macs, "decode": 0} == {**formula.macs, "decode": 0}
    assert found.dense.kv_bytes == 671 * 32 * 2 * 4096 * 2
    assert found.dense.kv_lengths == (671,) * 32


def build_config(name: str) -> Any:
    from transformers import CONFIG_MAPPING

    values = dict(presets()[name].config)
    return CONFIG_MAPPING[values.pop("model_type")](**values)


@pytest.mark.parametrize("intermediate", [256, 1024], ids=["attention", "mlp"])
@torch.no_grad()
def test_activations_are_about_what_a_language_model_holds(intermediate: int) -> None:
    """The estimate is within a quarter of what the allocator saw."""
    sizes = {"hidden_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 4}
    config = LlamaConfig(**sizes, intermediate_size=intermediate, vocab_size=64)
    model, states = LlamaModel(config).eval(), torch.randn(2, 600, 256)
    model(inputs_embeds=states, use_cache=False)
    gc.collect()
    gc.disable()
    try:
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as run:
            model(inputs_embeds=states, use_cache=False)
    finally:
        gc.enable()
    events = run.profiler.kineto_results.events()
    sizes_in_order = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    measured = max(accumulate(size for _, size in sizes_in_order))
    expected = activation_bytes(config, 600, 2, "float32")
    assert 0.75 * measured < expected < 1.25 * measured
    assert activation_bytes(config, 600, 1, "int8") == expected // 4  # two bytes a number, and half the samples


def test_prompts() -> None:
    one, two = (cost("tiny", images=number, batch=number, text_tokens=20) for number in (1, 2))
    assert two.prompt["visual_tokens"] == 2 * one.prompt["visual_tokens"]
    assert two.dense.cost.macs["vision"] == 4 * one.dense.cost.macs["vision"]
    assert two.dense.kv_bytes == 2 * (2 * one.prompt["visual_tokens"] + 20) * one.dense.kv_bytes // (
        one.prompt["visual_tokens"] + 20
    )
    halves = cost("tiny", dtype="int8", text_tokens=20)
    assert 2 * halves.dense.kv_bytes == one.dense.kv_bytes
    wide = cost("qwen2.5-vl-3b", image_size=(280, 560))
    assert wide.prompt["visual_tokens"] == 10 * 20
    tiles = [cost(name, image_size=(900, 900)).prompt["visual_tokens"] for name in ("internvl3-8b", "smolvlm2-2.2b")]
    assert tiles == [5 * 256, 17 * 81]


def test_a_convention_of_the_literature_stands_beside_the_count() -> None:
    found = cost("llava-1.5-7b", "FastV", budget=144, text_tokens=95, batch=2, convention="sparsevlm")
    said = conventions.report("sparsevlm", [576] * 32, 4096, 11008, text=95)
    assert found.dense.published is not None
    assert found.dense.published["total"] == said.total
    pruned = found.pruned[0].to_dict()["published"]
    assert pruned["share"] == pytest.approx(pruned["total"] / said.total)
    assert "published" not in cost("tiny").dense.to_dict()
    with pytest.raises(ConfigError, match="sparsevlm"):
        cost("tiny", convention="sparsvlm")


def test_policies_and_stages_alone() -> None:
    found = cost("tiny", Random(), "CrossAttention", [Stage("input", Random(), Keep(tokens=72))], budget=0.5)
    assert [each.stages[0]["site"] for each in found.pruned] == ["input", "decoder.2", "input"]
    assert found.pruned[0].cost.visual_tokens_per_layer == (72,) * 8
    several = cost("tiny", STAR(), STAR(), budget=[0.5, 0.25])
    assert [(each.name, each.budget) for each in several.pruned] == [
        ("STAR", 0.5), ("STAR", 0.25), ("STAR 2", 0.5), ("STAR 2", 0.25),
    ]  # fmt: skip
    rest = cost("tiny", FlowCut(), STAR(), budget=0.25, unreachable="skip").to_dict()
    assert rest["pruned"]["name"] == "STAR"
    assert [(each["name"], "depends on the data" in each["reason"]) for each in rest["skipped"]] == [("FlowCut", True)]


# --- numbers of the host ----------------------------------------------------------------------------------------------


def test_values_follow_from_values() -> None:
    with KnownValues():
        ids = to_meta(torch.tensor([[3, 1, 3, 0]]))
        flags = ids == 3
        assert flags.sum().item() == 2
        assert flags.long().cumsum(1).tolist() == [[1, 1, 2, 2]]
        assert torch.tensor([5, 6], device="meta").tolist() == [5, 6]
        states = torch.empty(1, 4, 2, device="meta")
        assert states[flags].shape == (2, 2)
        assert known(states) is None
        with pytest.raises(CostError, match="depends on the data"):
            states.sum().item()


def test_values_that_were_written_over_are_forgotten() -> None:
    with KnownValues():
        zeros = torch.zeros(2, 3, device="meta")
        assert known(zeros[:, 1]) is not None
        zeros[0].fill_(7)
        assert zeros.tolist() == [[7] * 3, [0] * 3]
        zeros[:, :1].copy_(torch.empty(2, 1, device="meta"))
        assert known(zeros) is None
