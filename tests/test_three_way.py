"""Three counts of the same forward pass agree to the last multiply-add: the trace, torch's counter, the closed form."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from catalogue import FAMILIES, Items, Subject
from counters import attention_split, experts_apart, subject, torch_counts
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModel
from zoo import ZOO

from prunekit import Keep, Stage, prune
from prunekit.adapter import adapter_for
from prunekit.budget import tokens_per_layer
from prunekit.budget.scorers import scorers
from prunekit.cache import CACHE
from prunekit.closed_form import Decoder, Encoder, closed_form
from prunekit.costs.closed_form_text import TEXT
from prunekit.costs.trace_graph import analyse
from prunekit.errors import UnsupportedInputError, UnsupportedModelError
from prunekit.flops import Cost, count
from prunekit.plan import Plan, Site
from prunekit.policies import STAR, Random, UniformGrid
from prunekit.trace import TraceRecord

DECIDING = ("prumerge-adaptive", "prumerge-plus")
UNKNOWN = ("fast_vlm", "perception_lm")  # encoders of timm
PIXELS = ("pixel_values", "pixel_values_videos")
GRIDS = ("image_grid_thw", "video_grid_thw")


def pictures(model: Subject, inputs: Any, batch: int) -> Any:
    """What the closed form is told of the images: their number, or the patches of each."""
    for name in GRIDS:
        if name in inputs:
            grids = inputs[name].tolist()
            return grids[: len(grids) // batch]
    if model.family.packed:
        edge = model.model.config.vision_config.patch_size
        grids = (inputs["image_sizes"] // edge).tolist()
        return grids[: len(grids) // batch]
    pixels = next(inputs[name] for name in PIXELS if name in inputs)
    each = pixels.flatten(0, -4) if pixels.ndim > 3 else pixels  # Molmo 2 has [crops, patches, values]
    return int(each.flatten(1).any(1).sum()) // batch  # tiles of zeros fill up rows, and are left out


def lengths(model: Subject, images: Any, items: Items, tokens: int) -> list[int] | list[list[int]] | None:
    """Tokens in each layer of the encoder with one stage inside it; the closed form's own where there is none."""
    inside = [item for item in items if isinstance(item, Stage) and item.where.part == 0]
    if not inside:
        return None
    (stage,), eyes = inside, Encoder.of(model.model.config.vision_config)
    merge = model.model.config.spatial_merge_size if model.family.name == "mistral3" else model.family.merge
    if isinstance(images, int):
        kept = stage.count(tokens // images)
        assert kept is not None
        short = eyes.special + kept * merge**2
        return [eyes.tokens if layer <= stage.where.index else short for layer in range(eyes.depth)]
    square = (merge if model.family.name == "mistral3" else 2) ** 2
    parts = [[stage.count(rows * columns // square) or 0 for *_, rows, columns in images]]
    return [
        eyes.parts(layer, images) if layer <= stage.where.index else [kept * square for kept in parts[0]]
        for layer in range(eyes.depth)
    ]


def formula(model: Subject, inputs: Any, items: Items, batch: int, cost: Cost, video: bool = False) -> Cost:
    """The closed form of the plan."""
    ids, name = inputs["input_ids"], model.family.name
    tokens = sum(int((ids[0] == each).sum()) for each in model.family.tokens)
    levels = tokens_per_layer(list(items), tokens, model.model.config.get_text_config().num_hidden_layers)
    images = 0 if name in UNKNOWN else pictures(model, inputs, batch)
    return closed_form(
        model.model,
        levels,
        ids.shape[1] - tokens,
        images=images,
        batch=batch,
        encoder=None if name in UNKNOWN else lengths(model, images, items, tokens),
        scorers=cost.scorers,
        projected=tokens if name == "molmo2" else None,
        video=video,
    )


def compare(cost: Cost, expected: Cost, parts: Sequence[str] = ("vision", "projector", "prefill", "lm_head")) -> None:
    assert {part: cost.macs[part] for part in parts} == {part: expected.macs[part] for part in parts}
    assert cost.prefill_per_layer == expected.prefill_per_layer
    assert cost.visual_tokens_per_layer == expected.visual_tokens_per_layer


def plan_of(family: str, name: str) -> Items:
    """STAR's stages, at the input and in the decoder, behind one inside the encoder where the family takes it."""
    known, depth = FAMILIES[family], 4
    if name == "dense":
        return ()
    star = STAR(keep=0.25, visual_queries="visual" if known.encoder_layers else "embedding")
    inside = Stage("vision.0", UniformGrid(), Keep(ratio=0.75))
    return (*[inside] * bool(known.encoder_layers and known.sites), *star.stages(depth))


@pytest.mark.parametrize("plan", ["dense", "pruned"])
@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str, plan: str) -> None:
    model, items = subject(family), plan_of(family, plan)
    inputs = model.make_inputs(batch=2, images=2, text=5)
    cost = count(model.model, inputs, items)
    assert cost.flops == torch_counts(model.model, inputs, items)[0]
    parts = ["prefill", "lm_head"] if family in UNKNOWN else ["vision", "projector", "prefill", "lm_head"]
    if (family, plan) == ("qwen2_5_vl", "pruned"):
        parts.remove("vision")  # how many tokens each window keeps is known only when they are chosen
    compare(cost, formula(model, inputs, items, 2, cost), parts)


@pytest.mark.parametrize("family", [name for name, known in FAMILIES.items() if known.video and name not in UNKNOWN])
def test_videos(family: str) -> None:
    model = subject(family)
    inputs = model.make_inputs(images=0, videos=1)
    cost = count(model.model, inputs)
    expected = formula(model, inputs, (), 1, cost, video=True)
    compare(cost, expected, ["prefill", "lm_head"])
    assert cost.macs["vision"] + cost.macs["projector"] == expected.macs["vision"] + expected.macs["projector"]
    assert cost.total_macs == expected.total_macs


def left(model: Subject, trace: Sequence[TraceRecord]) -> tuple[list[int], list[int]]:
    """Visual tokens in decoder layers and tokens in encoder layers, by a method's own records of one image."""
    config = model.model.config
    eyes, depth = Encoder.of(config.vision_config), config.text_config.num_hidden_layers
    levels, encoder = [eyes.patches] * depth, [eyes.tokens] * eyes.depth
    for record in trace:
        site, kept = Site.parse(record.site), int((record.kept >= 0).sum())
        if site.kind == "vision":
            encoder[site.index + 1 :] = [eyes.special + kept] * (eyes.depth - site.index - 1)
        levels[site.index * (site.part == 2) :] = [kept] * (depth - site.index * (site.part == 2))
    return levels, encoder


@pytest.mark.parametrize("method", ZOO)
def test_methods(method: str) -> None:
    model, items = subject("llava"), ZOO[method].build(Keep(ratio=0.5))
    inputs = model.make_inputs()
    cost = count(model.model, inputs, items)
    flops, trace = torch_counts(model.model, inputs, items)
    assert cost.flops == flops
    levels, encoder = left(model, trace)
    text = inputs["input_ids"].shape[1] - 36
    compare(cost, closed_form(model.model, levels, text, encoder=encoder))
    shape, config = adapter_for(model.model).shape, model.model.config
    language, eyes = Decoder.of(config.text_config), Encoder.of(config.vision_config)
    behind = text - 2  # a first token and a word come before the image
    own = scorers(Plan.of(items, shape).stages, shape, language, eyes, levels, 36, text, behind)
    known = {name: macs for name, macs in own.items() if macs}
    if method in DECIDING:  # how many tokens the means go to is the data's to say; all of them, it is assumed
        assert cost.macs["scorer"] < sum(known.values())
    else:
        assert cost.scorers == known


@pytest.mark.parametrize("site", [None, "input", "decoder.2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_decoding(family: str, site: str | None) -> None:
    """What `generate` computes behind the prefill, and what its caches hold, sliding windows included."""
    model, steps = subject(family), 3
    items = () if site is None else (Stage(site, Random(), Keep(ratio=0.5)),)
    inputs = model.make_inputs()
    counter = FlopCounterMode(display=False)
    with prune(model.model, *items) if items else nullcontext(), experts_apart(model.model), counter, attention_split():
        result = model.model.generate(
            **inputs, max_new_tokens=steps + 1, do_sample=False, return_dict_in_generate=True, use_cache=True
        )
    language = Decoder.of(model.model.config.get_text_config())
    visual = sum(int((inputs["input_ids"] == each).sum()) for each in model.family.tokens)
    text = inputs["input_ids"].shape[1] - visual
    pruned = {None: None, "input": 0, "decoder.2": 2}[site]
    kept = [visual if pruned is None or layer < pruned else visual // 2 for layer in range(4)]
    held = [tokens + text for tokens in kept]
    expected = sum(language.decode(held, steps, pruned=pruned)) + language.head(steps)
    assert counter.get_total_flops() - torch_counts(model.model, inputs, items)[0] == 2 * expected
    sizes = [layer.keys.nbytes + layer.values.nbytes for layer in result[CACHE].layers]
    assert sizes == list(language.cache_bytes([n + steps for n in held], value_bytes=4, pruned=pruned))


@pytest.mark.parametrize("site", [None, "decoder.2"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_traced_decode_step(family: str, site: str | None) -> None:
    """One token more, traced on the cache that a prefill of two rows left, is the closed form of one step."""
    model = subject(family)
    items = () if site is None else (Stage(site, Random(), Keep(ratio=0.5)),)
    inputs = model.make_inputs(batch=2, text=(6, 6))
    step = {"input_ids": inputs["input_ids"][:, -1:]}  # no mask: rows are equally long
    with torch.no_grad(), prune(model.model, *items) if items else nullcontext():
        left = model.model(**inputs, use_cache=True)[CACHE]
        counts, _ = analyse(model.model, step, {CACHE: left, "use_cache": True, "return_dict": True})
    language = Decoder.of(model.model.config.get_text_config())
    visual = sum(int((inputs["input_ids"][0] == each).sum()) for each in model.family.tokens)
    text, pruned = inputs["input_ids"].shape[1] - visual, None if site is None else 2
    held = [text + (visual if pruned is None or layer < pruned else visual // 2) for layer in range(4)]
    assert sum(counts.values()) == 2 * (sum(language.decode(held, 1, pruned=pruned)) + language.head(1))


ALONE = ("cohere", "gemma", "qwen3", "qwen3_moe")


def test_every_language_model_is_compared() -> None:
    assert {*ALONE, *(subject(name).model.config.text_config.model_type for name in FAMILIES)} == set(TEXT)


@pytest.mark.parametrize("kind", ALONE)
def test_language_models(kind: str) -> None:
    """Language models of no tiny family: InternVL and LLaVA come with several."""
    sizes = {"num_hidden_layers": 3, "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 64, "pad_token_id": 0}
    experts = {"num_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1}
    config = AutoConfig.for_model(kind)
    known = {name: value for name, value in (sizes | experts).items() if hasattr(config, name)}
    config = AutoConfig.for_model(kind, **known, **{"layer_types": None} if hasattr(config, "layer_types") else {})
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), experts_apart(model), counter:
        model(input_ids=torch.zeros(1, 7, dtype=torch.long))
    language = Decoder.of(config)
    assert counter.get_total_flops() == 2 * sum(language.layers([7] * 3))
    assert language.head(2) == 2 * 64 * 32


def test_a_pooling_head_runs_in_vain() -> None:
    from transformers import SiglipVisionConfig, SiglipVisionModel

    config = SiglipVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=16, patch_size=4
    )
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, attention_split():
        SiglipVisionModel(config).eval()(torch.zeros(3, 3, 16, 16))
    eyes = Encoder.of(config)
    assert eyes.pooled == 48
    assert counter.get_total_flops() == 2 * (3 * (eyes.embedding() + 2 * eyes.layer(16)) + eyes.tail(3 * 16, 3))


def test_what_it_does_not_know_is_refused_by_name() -> None:
    fast, qwen, molmo = (subject(name).model for name in ("fast_vlm", "qwen2_vl", "molmo2"))
    with pytest.raises(UnsupportedModelError, match=r"'fast_vlm'.*images=0"):
        closed_form(fast, [16] * 4, 9)
    assert closed_form(fast, [16] * 4, 9, images=0).macs["vision"] == 0
    with pytest.raises(UnsupportedInputError, match=r"qwen2_vl_vision.*grid of patches"):
        closed_form(qwen, [16] * 4, 9)
    with pytest.raises(UnsupportedInputError, match=r"clip_vision_model.*their number"):
        closed_form(subject("llava").model, [36] * 4, 9, images=[(6, 6)])
    with pytest.raises(UnsupportedInputError, match=r"projected is missing.*'molmo2'"):
        closed_form(molmo, [32] * 4, 9, images=2)
    with pytest.raises(UnsupportedModelError, match=r"language model 'qwen4'.*Did you mean 'qwen3'"):
        closed_form(SimpleNamespace(get_text_config=lambda decoder: SimpleNamespace(model_type="qwen4")), [1], 1)
