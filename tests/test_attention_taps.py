"""Tapped attention rows equal eager attention's, without eager attention, and nothing runs twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from catalogue import ATTENTION, Subject, subject
from invariants import LAYOUTS
from oracle import Inputs
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prunekit import Keep, Needs, PruningPolicy, Rows, Selection, Stage, VisualTokens, prune
from prunekit.attention import attention_rows
from prunekit.policies import STAR

SEEN: dict[str, VisualTokens] = {}


@dataclass(frozen=True)
class Probe(PruningPolicy):
    """Keeps every second token and shows what it was given."""

    name: str
    rows: tuple[Rows, ...] = field(default=())
    everything: bool = False

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(attention=self.rows)

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        SEEN[self.name] = tokens
        if self.everything:
            return Selection.everything(tokens)
        assert keep is not None
        count = tuple(keep.count(total) for total in tokens.total)
        order = torch.arange(max(count)).expand(len(count), -1)
        return Selection(torch.where(order < torch.tensor(count)[:, None], order, -1), count)


@torch.no_grad()
def tapped(model: Subject, inputs: Inputs, site: str, rows: Rows, *before: Stage) -> Tensor:
    with prune(model.model, *before, Stage(site, Probe("probe", (rows,)), Keep(ratio=0.5))):
        model.model(**inputs)
    return SEEN["probe"].attention[rows]


@torch.no_grad()
def maps(inputs: Inputs) -> tuple[Any, Any]:
    """Full attention maps of the dense eager model: decoder [batch, heads, n, n], encoder [images, heads, m, m]."""
    dense = subject("llava", "eager").dense
    tower = dense.model.vision_tower(inputs["pixel_values"], output_attentions=True)
    return dense(**inputs, output_attentions=True).attentions, tower.attentions


def text_queries(model: Subject, inputs: Inputs, row: int, rows: Rows) -> list[int]:
    ids, real = inputs["input_ids"][row], inputs["attention_mask"][row]
    visual = (ids == model.family.image_token).nonzero().flatten().tolist()
    after = [i for i in range(visual[-1] + 1, len(ids)) if real[i]]
    if rows.queries == "last":
        return after[-1:]
    return after if rows.queries == "text" else after[: len(after) - min(rows.cue, len(after) - 1)]


def assert_rows(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-6 * 20, atol=1e-7)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("queries", ["last", "text", "instruction"])
@pytest.mark.parametrize("reduce", ["mean", None])
@pytest.mark.parametrize("attention", ATTENTION)
def test_decoder_rows(attention: str, reduce: Any, queries: Any, layout: str) -> None:
    model, rows = subject("llava", attention), Rows(queries, reduce=reduce)
    inputs = model.make_inputs(**LAYOUTS[layout], seed=4)
    found, (decoder, _) = tapped(model, inputs, "decoder.2", rows), maps(inputs)
    for row, ids in enumerate(inputs["input_ids"]):
        visual = (ids == model.family.image_token).nonzero().flatten()
        wanted = text_queries(model, inputs, row, rows)
        expected = decoder[1][row][:, wanted][:, :, visual]  # [heads, rows, visual]
        if reduce == "mean":
            assert_rows(found[row, : len(visual)], expected.mean((0, 1)))
            continue
        real = found[row][:, :, : len(visual)]
        filled = real.abs().sum((0, 2)) > 0
        assert int(filled.sum()) == len(wanted), "rows that do not exist must be 0"
        assert_rows(real[:, filled], expected)


@pytest.mark.parametrize("layer", [0, 1, -4])
@pytest.mark.parametrize("attention", ATTENTION)
def test_a_decoder_layer_by_number(attention: str, layer: int) -> None:
    model, rows = subject("llava", attention), Rows("last", layer=layer, reduce="mean")
    inputs = model.make_inputs()
    visual = inputs["input_ids"][0] == model.family.image_token
    found, (decoder, _) = tapped(model, inputs, "decoder.3", rows), maps(inputs)
    assert_rows(found[0], decoder[layer][0, :, -1][:, visual].mean(0))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("queries", ["cls", "visual"])
@pytest.mark.parametrize("site", ["vision.0", "vision.1", "input"])
@pytest.mark.parametrize("attention", ATTENTION)
def test_encoder_rows(attention: str, site: str, queries: Any, layout: str) -> None:
    model, rows = subject("llava", attention), Rows(queries, reduce="mean")
    inputs = model.make_inputs(**LAYOUTS[layout])
    found, (_, encoder) = tapped(model, inputs, site, rows), maps(inputs)
    layer = int(site[-1]) if site != "input" else -2  # attentions[-2] belongs to the layer that made hidden_states[-2]
    full = encoder[layer].mean(1)  # [images, tokens, tokens]
    expected = full[:, 0, 1:] if queries == "cls" else full[:, 1:, 1:].mean(1)
    start = 0
    for row, ids in enumerate(inputs["input_ids"]):
        images = int((ids == model.family.image_token).sum()) // model.family.per_image
        ours = found[row] if site == "input" else found[start : start + images]
        assert_rows(ours.flatten()[: images * model.family.per_image], expected[start : start + images].flatten())
        start += images


@torch.no_grad()
@pytest.mark.parametrize("attention", ATTENTION)
def test_rows_after_an_earlier_stage(attention: str) -> None:
    """What a later stage is shown are the attention weights among the tokens that are left."""
    model, inputs = subject("llava", attention), subject("llava", attention).make_inputs(**LAYOUTS["padded"])
    rows, first = Rows("last", reduce="mean"), Stage("input", Probe("first"), Keep(ratio=0.75))
    found = tapped(model, inputs, "decoder.1", rows, first)
    per = model.family.per_image
    source = SEEN["probe"].source
    assert torch.equal(source, torch.arange(per * 3 // 4).expand(3, -1))
    core, dense = subject("llava", "eager").dense.model, subject("llava", "eager").dense
    states: list[Any] = []
    handle = core.language_model.register_forward_pre_hook(lambda m, a, k: states.append(k), with_kwargs=True)
    dense(**inputs)
    handle.remove()
    for row, ids in enumerate(inputs["input_ids"]):
        number = (ids == model.family.image_token).long().cumsum(0) - 1
        stays = inputs["attention_mask"][row].bool() & ~((ids == model.family.image_token) & (number >= per * 3 // 4))
        embeds, where = states[0]["inputs_embeds"][row][stays][None], torch.arange(len(ids))[stays][None]
        full = core.language_model(inputs_embeds=embeds, position_ids=where, output_attentions=True).attentions[0]
        visual = (ids == model.family.image_token)[stays]
        torch.testing.assert_close(found[row], full[0, :, -1][:, visual].mean(0), rtol=1e-4, atol=1e-6)


class Largest(TorchDispatchMode):
    """Notes the largest result of any operator that runs while a tap computes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: dict[int, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(value, Tensor) and not value._is_view():
                self.elements[value.numel()] = self.elements.get(value.numel(), 0) + 1
        return out


@pytest.mark.parametrize(("queries", "site"), [("last", "decoder.2"), ("cls", "input")])
@torch.no_grad()
def test_no_full_map_is_made(queries: Any, site: str) -> None:
    """One row of attention costs one row: no [heads, n, n] tensor appears that the plain model does not have."""
    model = subject("llava", "sdpa")
    inputs = model.make_inputs(images=2)
    length = inputs["input_ids"].shape[1]
    probe = Probe("all", (Rows(queries, reduce="mean"),), everything=True)
    with prune(model.model, Stage(site, probe, Keep(ratio=1.0))), Largest() as session:
        model.model(**inputs)
    with Largest() as plain:
        model.model(**inputs)
    text, vision = model.model.config.text_config, model.model.config.vision_config
    for heads, tokens in ((text.num_attention_heads, length), (vision.num_attention_heads, model.family.per_image + 1)):
        for images in (1, 2):
            full = images * heads * tokens**2
            assert session.elements.get(full, 0) <= plain.elements.get(full, 0), "a full attention map was made"


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_nothing_runs_twice_and_settings_stay(attention: str) -> None:
    model = subject("llava", attention)
    inputs, calls, settings = model.make_inputs(), [], set()
    stages = (
        Stage("vision.0", Probe("a", (Rows("cls", reduce="mean"),)), Keep(ratio=0.75)),
        Stage("input", Probe("b", (Rows("visual", reduce="mean"),)), Keep(ratio=0.5)),
        Stage("decoder.2", Probe("c", (Rows("text", reduce="mean"), Rows("last"))), Keep(ratio=0.25)),
    )

    def note(module: Any, args: Any) -> None:
        calls.append(module)
        settings.update(each.config._attn_implementation for each in model.model.modules() if hasattr(each, "config"))

    handles = [module.register_forward_pre_hook(note) for module in model.model.modules()]
    model.model(**inputs)
    plain, calls[:] = list(calls), []
    with prune(model.model, *stages):
        model.model(**inputs)
    for handle in handles:
        handle.remove()
    assert sorted(map(id, calls)) == sorted(map(id, plain))
    assert settings == {attention}


@torch.no_grad()
def test_another_implementation_in_each_part() -> None:
    model, make_inputs = subject("llava", "sdpa").family.build("sdpa")
    inputs = make_inputs(**LAYOUTS["ragged"])
    kept = []
    for vision, text in (("sdpa", "sdpa"), ("eager", "sdpa"), ("sdpa", "eager")):
        model.set_attn_implementation({"vision_config": vision, "text_config": text})
        with prune(model, STAR(keep=0.25)) as session:
            model(**inputs)
        kept.append([record.kept for record in session.trace])
        assert model.model.vision_tower.config._attn_implementation == vision
        assert model.model.language_model.config._attn_implementation == text
    assert all(torch.equal(a, b) for other in kept[1:] for a, b in zip(kept[0], other, strict=True))


@pytest.mark.parametrize("local", [True, False], ids=["override", "registered"])
@torch.no_grad()
def test_a_users_own_attention_function(local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is called for every layer, tapped or not, and is still in its place afterwards."""
    calls: list[Any] = []
    original = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def own(module: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(module)
        return original(module, *args, **kwargs)

    model, make_inputs = subject("llava", "sdpa").family.build("sdpa")
    name = "sdpa" if local else "own_sdpa"
    mapping = ALL_ATTENTION_FUNCTIONS._local_mapping if local else ALL_ATTENTION_FUNCTIONS._global_mapping
    monkeypatch.setitem(mapping, name, own)
    if not local:
        monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, name, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
        model.set_attn_implementation(name)
    inputs = make_inputs(**LAYOUTS["padded"])
    with prune(model, STAR(keep=0.25)) as session:
        model(**inputs)
    assert len(calls) == len(set(calls)) == 8
    assert mapping[name] is own
    with prune(subject("llava", "sdpa").model, STAR(keep=0.25)) as plain:
        subject("llava", "sdpa").model(**inputs)
    for ours, theirs in zip(session.trace, plain.trace, strict=True):
        assert torch.equal(ours.kept, theirs.kept)


def test_images_in_one_sequence_see_only_themselves() -> None:
    """FlashAttention is handed bounds in place of a mask; the rows are those of the block-diagonal mask."""
    generator = torch.Generator().manual_seed(3)
    query, key = (torch.randn(1, 2, 9, 4, generator=generator) for _ in range(2))
    bounds = torch.tensor([0, 4, 9])
    segments = torch.bucketize(torch.arange(9), bounds[1:], right=True)
    mask = (segments[:, None] == segments)[None, None]
    rows = torch.arange(9)[None]
    real = torch.ones_like(rows, dtype=torch.bool)
    module = torch.nn.Identity()
    expected = attention_rows(module, query, key, mask, rows, real, rows)
    assert torch.equal(attention_rows(module, query, key, None, rows, real, rows, segments=segments), expected)
