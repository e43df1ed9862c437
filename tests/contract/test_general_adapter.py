"""Families that prunekit knows nothing of: the general adapter finds their language model, and the invariants hold.

Each is run with random tokens at the input, and with four stages down to the last layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from typing import Any

import pytest
import torch
import transformers
from catalogue import PLANS, RECORDS, Family, build
from invariants import FAR, LAYOUTS, assert_near, check_trace, generate, same_generation
from oracle import Alive, masked

from prunekit import Keep, Stage, prune
from prunekit._language import HANDING_ON
from prunekit.adapter import ModelAdapter, adapter_for
from prunekit.errors import NeedsError, SiteError, UnsupportedInputError, UnsupportedModelError
from prunekit.models.tiny.builders import BUILDERS, tiny_random
from prunekit.models.tiny.builders.common import IMAGE, PAD, VIDEO
from prunekit.policies import STAR, FasterVLM, Random

IN_MODEL = {"decoder_layers": "model.layers"}
THINKER = IN_MODEL if transformers.__version__.startswith("5.20.") else {}
SHARING = (("layers", 8), ("shared", 3))  # layers 5 to 7 look at the keys of layers 3 and 4
UNKNOWN = [
    Family("idefics2", encoder_layers="", decoder_layers="model.text_model.layers"),
    Family("llama4", (("chunk", 512),), encoder_layers="", decoder_layers="language_model.model.layers"),
    Family("gemma4", SHARING, encoder_layers=""),
    Family("gemma4_moe", encoder_layers=""),
    Family("aria", encoder_layers=""),
    Family("got_ocr2", encoder_layers=""),
    Family("janus", encoder_layers=""),
    Family("deepseek_vl_hybrid", encoder_layers=""),
    Family("phi4_multimodal", encoder_layers="", **IN_MODEL),
    Family("lighton_ocr", encoder_layers=""),
    Family("fuyu", encoder_layers=""),
    Family("chameleon", encoder_layers="", **IN_MODEL),
    Family("emu3", encoder_layers="", decoder_layers="model.text_model.layers"),
    Family("hunyuan_vl", encoder_layers=""),
    Family("video_llama_3", encoder_layers="", tokens=(IMAGE, VIDEO)),
    Family("ernie4_5_vl_moe", encoder_layers="", tokens=(IMAGE, VIDEO)),
    Family("paddleocr_vl", encoder_layers=""),
    Family("exaone4_5", encoder_layers="", tokens=(IMAGE, VIDEO)),
    Family("hyperclovax_vision_v2", encoder_layers="", tokens=(IMAGE, VIDEO)),
    Family("glm_ocr", encoder_layers=""),
    Family("cosmos3_edge", encoder_layers="", tokens=(IMAGE, VIDEO)),
    Family("gemma4_unified", encoder_layers="", tokens=(IMAGE, VIDEO)),
    Family("step3p7", encoder_layers=""),
    Family("qwen2_5_omni", encoder_layers="", tokens=(IMAGE, VIDEO), **THINKER),
    Family("qwen3_omni_moe", encoder_layers="", tokens=(IMAGE, VIDEO), **THINKER),
    Family("cosmos3_omni", encoder_layers="", tokens=(IMAGE, VIDEO)),
    Family("cohere_compass", encoder_layers="", tokens=(IMAGE, VIDEO)),
    Family("muse_glimmer", encoder_layers="", tokens=(IMAGE, VIDEO)),
    Family("muse_spark", encoder_layers="", tokens=(IMAGE, VIDEO)),
    Family("dots3_note", encoder_layers="", tokens=(IMAGE, VIDEO)),
    Family("granite4_vision", encoder_layers=""),
    Family("granite_docling", encoder_layers="", decoder_layers="model.text_model.layers"),
    Family("qianfan_ocr", encoder_layers=""),
    Family("deepseek_ocr2", encoder_layers=""),
    Family("kimi_k25", encoder_layers="", tokens=(IMAGE, VIDEO)),
    Family("unlimited_ocr", encoder_layers=""),
]


def everything() -> Iterator[Any]:
    """Families, plans and layouts; all of them only with the long tests."""
    for family in UNKNOWN:
        for policy in ("random-input", "pyramid"):
            for layout in ("padded", "ragged"):
                most = (policy, layout) == ("pyramid", "ragged")
                marks = () if most or family.name in ("llama4", "gemma4", "phi4_multimodal") else pytest.mark.slow
                yield pytest.param(family, policy, layout, id=f"{family.name}-{policy}-{layout}", marks=marks)


@pytest.mark.parametrize(("family", "policy", "layout"), list(everything()))
@torch.no_grad()
def test_pruning_equals_masking(family: Family, policy: str, layout: str) -> None:
    check_general_adapter(family, policy, layout)


@pytest.mark.parametrize("layout", ["padded", "ragged"])
@pytest.mark.parametrize(("shared", "policy"), [(True, "random-input"), (False, "random-input"), (False, "pyramid")])
@pytest.mark.parametrize("family", ["mistral_large4"])
@torch.no_grad()
def test_an_indexer_picks_among_the_tokens_that_are_left(family: str, shared: bool, policy: str, layout: str) -> None:
    check_general_adapter(Family(family, (("shared", shared),), encoder_layers=""), policy, layout)


@pytest.mark.parametrize(("policy", "layout"), [("random-input", "padded"), ("pyramid", "ragged"), ("fastv", "single")])
@torch.no_grad()
def test_a_window_over_what_is_generated(policy: str, layout: str) -> None:
    family = Family("unlimited_ocr", (("generated", 3),), encoder_layers="")
    model, whole = build(family, "sdpa"), build(replace(family, sizes=(("generated", 100),)), "sdpa")
    inputs, steps = model.make_inputs(**LAYOUTS[layout], seed=1), 8
    with prune(model.model, *PLANS[policy]) as session, prune(whole.model, *PLANS[policy]):
        generated, unforgetting = (generate(each, inputs, steps) for each in (model.model, whole.model))
    with masked(model.dense, Alive(session.trace, inputs, family), family):
        expected = generate(model.dense, inputs, steps)
    same_generation(generated, expected, "generate", 2e-5)
    assert_near(generated.logits[3], unforgetting.logits[3], "while the window holds everything")
    assert (generated.logits[4] - unforgetting.logits[4]).abs().max() > FAR


def check_general_adapter(family: Family, policy: str, layout: str) -> None:
    """Prefill and generation of the pruned model are those of a dense one whose layers do not see what is dropped."""
    model = build(family, "sdpa")
    assert type(adapter_for(model.model)) is ModelAdapter
    inputs = model.make_inputs(**LAYOUTS[layout], seed=1)
    with prune(model.model, *PLANS[policy]) as session:
        logits = model.model(**inputs).logits
        records = session.trace[:]
        generated = generate(model.model, inputs, 4)
        later = session.trace[len(records) :]  # may differ: `generate` does not count padding among the positions
    assert len(records) == RECORDS.get(policy, 1)
    check_trace(records, inputs, model)
    alive = Alive(records, inputs, family)
    plain = model.dense(**inputs).logits
    with masked(model.dense, alive, family):
        expected = model.dense(**inputs).logits
    with masked(model.dense, Alive(later, inputs, family), family):
        expected_generated = generate(model.dense, inputs, 4)
    final = alive.final()
    assert_near(logits[final], expected[final], "prefill", 2e-5)
    same_generation(generated, expected_generated, "generate", 2e-5)
    assert (logits - plain)[:, -1].abs().max() > FAR


# DeepStack: features are added to the states between their first layers
TOUCHED = ("qwen3_omni_moe", "cosmos3_omni", "cohere_compass", "granite4_vision", "granite_docling")
HANDED_ON = [
    *(family.name for family in UNKNOWN if family.name not in TOUCHED),
    "mistral_large4",
    "blip_2",
    "internvl",
    "llava",
    "cohere2_vision",
    "paligemma",
    "lfm2_vl",
    "lfm3_vl",
    "minicpmv4_6",
    "qwen3_5_moe",
]


def test_every_language_model_that_hands_on_is_looked_at() -> None:
    shipped = [name for name in HANDED_ON if find_spec(f"transformers.models.{BUILDERS[name]}") is not None]
    looked_at = {type(adapter_for(tiny_random(name)[0]).text_model).__name__ for name in shipped}
    assert looked_at <= HANDING_ON
    assert looked_at == HANDING_ON or len(shipped) < len(HANDED_ON)  # an older release has not all families


@pytest.mark.parametrize("family", HANDED_ON)
@torch.no_grad()
def test_known_language_models_hand_the_states_on(family: str) -> None:
    model, make_inputs = tiny_random(family)
    adapter = adapter_for(model)
    assert adapter.hands_on
    given: list[torch.Tensor] = []
    made: list[torch.Tensor] = []
    for layer in adapter.decoder_layers:
        layer.register_forward_pre_hook(
            lambda _, args, kwargs: given.append(args[0] if args else kwargs["hidden_states"]), with_kwargs=True
        )
        layer.register_forward_hook(
            lambda _, args, output: made.append(output[0] if isinstance(output, tuple) else output)
        )
    model(**make_inputs())
    assert len(given) == adapter.depth
    inside = [layer for layer in range(adapter.depth - 1) if not adapter.full_length_after(layer)]
    assert len(inside) >= adapter.depth - 2
    assert all(given[layer + 1] is made[layer] for layer in inside)


@pytest.mark.parametrize("family", ["janus", "llama4", "phi4_multimodal"])
@torch.no_grad()
def test_states_are_put_back_after_each_layer_of_an_unknown_one(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, make_inputs = tiny_random(family)
    inputs, lengths = make_inputs(), []
    depth = adapter_for(model).depth
    for layer in adapter_for(model).decoder_layers:
        layer.register_forward_hook(
            lambda _, args, output: lengths.append((output[0] if isinstance(output, tuple) else output).shape[-2])
        )
    with prune(model, *PLANS["pyramid"]):
        known = model(**inputs).logits
    monkeypatch.setattr("prunekit._language.HANDING_ON", frozenset())
    with prune(model, *PLANS["pyramid"]):
        unknown = model(**inputs).logits
    whole = inputs["input_ids"].shape[1]
    assert lengths[depth - 1] < whole
    assert set(lengths[depth:]) == {whole}
    torch.testing.assert_close(known, unknown)


def test_stages_come_before_layers_whose_keys_are_shared() -> None:
    model, _ = tiny_random("gemma4", **dict(SHARING))
    assert adapter_for(model).sites() == ["input", "decoder.1", "decoder.2", "decoder.3"]
    with pytest.raises(SiteError, match=r"'decoder.4'.*share the keys of layer 3.*'decoder.1' to 'decoder.3'"):
        prune(model, Stage("decoder.4", Random(), Keep(ratio=0.5)))
    with pytest.raises(SiteError, match=r"'decoder.8'"):
        prune(model, Stage("decoder.8", Random(), Keep(ratio=0.5)))


@pytest.mark.parametrize("method", [STAR(), FasterVLM()], ids=lambda method: type(method).__name__)
def test_what_it_cannot_offer_is_refused(method: STAR | FasterVLM) -> None:
    model, _ = tiny_random("janus")
    with pytest.raises(NeedsError, match=r"vision encoder.*no adapter.*JanusFor"):
        prune(model, method)


REFUSED = [
    *("gemma3n", "mllama", "florence2", "t5gemma2", "diffusion_gemma", "pi0"),
    *("qwen4_exp", "glm5_next", "inkling", "inkling2", "minimax_m3_vl"),
]


@pytest.mark.parametrize("family", REFUSED)
def test_families_that_cannot_be_pruned(family: str) -> None:
    model, _ = tiny_random(family)
    with pytest.raises(UnsupportedModelError, match=rf"{type(model).__name__}.*cannot be pruned: "):
        prune(model, *PLANS["random-input"])


@pytest.mark.parametrize("family", ["blip_2", "instructblip"])
@torch.no_grad()
def test_a_generate_that_bypasses_the_forward(family: str) -> None:
    model, make_inputs = tiny_random(family)
    inputs = make_inputs()
    with prune(model, *PLANS["random-input"]) as session:
        model(**inputs)
        assert session.trace
        with pytest.raises(UnsupportedInputError, match=r"bypasses its forward"):
            model.generate(**inputs, max_new_tokens=2)


TOLD_APART = {"granite4_vision": ((24, 14), (24,)), "granite_docling": ((16, 16, 16, 16), (16,))}


@pytest.mark.parametrize("family", TOLD_APART)
@torch.no_grad()
def test_images_whose_features_are_not_one_tensor(family: str) -> None:
    """Granite 4 Vision has features by decoder layer, Granite Docling one tensor for the tiles of a sample."""
    model, make_inputs = tiny_random(family)
    inputs = make_inputs(batch=2, images=(2, 1))
    images = TOLD_APART[family]
    with prune(model, *PLANS["per-image"]) as session:
        model(**inputs)
        (record,) = session.trace
        short = inputs["input_ids"].clone()
        short[0, (short[0] == IMAGE).nonzero()[0]] = PAD
        with pytest.raises(UnsupportedInputError, match=r"placeholders for images"):
            model(**{**inputs, "input_ids": short})
    for row, sizes in zip(record.kept, images, strict=True):
        number = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        assert number[row[row >= 0]].bincount().tolist() == [size // 4 for size in sizes]


@pytest.mark.parametrize("family", ["gemma3", "muse_glimmer"])
@torch.no_grad()
def test_placeholders_among_embeddings_that_are_scaled_or_normalised(family: str) -> None:
    model, make_inputs = tiny_random(family)
    inputs = make_inputs(batch=2, text=(5, 8))
    with prune(model, *PLANS["random-input"]) as session:
        expected = model(**inputs).logits[:, -1]
        embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
        assert_near(model(inputs_embeds=embeds, **inputs).logits[:, -1], expected, family)
    assert torch.equal(session.trace[0].kept, session.trace[1].kept)


def test_positions_of_several_axes_in_some_kinds_of_layers() -> None:
    assert adapter_for(tiny_random("cohere_compass")[0])._several_positions
    assert not adapter_for(tiny_random("muse_glimmer")[0])._several_positions


WIDE = {"window": 512}  # windows count what was sent, also where it was dropped


@pytest.mark.parametrize(("family", "sizes"), [("muse_glimmer", WIDE), ("muse_spark", WIDE), ("lfm2_vl", {})])
@torch.no_grad()
def test_compact_positions_where_some_layers_have_none(family: str, sizes: dict[str, int]) -> None:
    model, make_inputs = tiny_random(family, **sizes)
    inputs, embeds, core = make_inputs(), [], model.model
    handle = core.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: embeds.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    core(**inputs)
    handle.remove()
    with prune(model, *PLANS["random-input"], positions="compact") as session:
        actual = core(**inputs).last_hidden_state[:, -1]
    stays = inputs["input_ids"][0] != IMAGE
    stays[(~stays).nonzero()[session.trace[0].kept[0], 0]] = True
    native = core.language_model(inputs_embeds=embeds[0][:, stays]).last_hidden_state[:, -1]
    assert_near(actual, native, family)
