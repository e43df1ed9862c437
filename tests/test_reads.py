"""What policies can read besides attention and keys: each is compared with the same thing in a plain model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from catalogue import ATTENTION, FAMILIES, Subject, subject
from torch import Tensor, nn

from prunekit import Keep, Method, Needs, PruningPolicy, Rows, Selection, Stage, States, VisualTokens, prune
from prunekit.cache import CACHE
from prunekit.errors import NeedsError, SessionError
from prunekit.policies import Random

ALL = Keep(ratio=1.0)
RAGGED: dict[str, Any] = {"batch": 2, "images": (2, 1), "text": (3, 7)}


@dataclass(frozen=True)
class Reader(PruningPolicy):
    """Keeps everything and notes what it was given."""

    needs: Needs = field(default_factory=Needs)
    seen: list[VisualTokens] = field(default_factory=list)

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        self.seen.append(tokens)
        return Selection.everything(tokens)


def read(model: Subject, site: str, needs: Needs, *before: Stage, side: Any = None, **layout: Any) -> VisualTokens:
    reader = Reader(needs)
    with prune(model.model, *before, Stage(site, reader, before[-1].keep if before else ALL)) as session:
        session.side.update(side or {})
        model.model(**model.make_inputs(**layout))
    return reader.seen[-1]


@torch.no_grad()
def output_of(model: Subject, module: nn.Module, pick: Callable[..., Tensor], **layout: Any) -> Tensor:
    """What `pick(args, kwargs, output)` gives for the last call of a module of the plain model."""
    found: list[Tensor] = []
    handle = module.register_forward_hook(lambda m, a, k, o: found.append(pick(a, k, o)), with_kwargs=True)
    try:
        model.dense(**model.make_inputs(**layout))
    finally:
        handle.remove()
    return found[-1]


def first(args: Any, kwargs: Any, output: Any) -> Tensor:
    return output[0] if isinstance(output, tuple) else output


def rows_of(model: Subject, states: Tensor, placeholder: bool, **layout: Any) -> list[Tensor]:
    """States of the visual (or of the text) tokens of each row."""
    inputs = model.make_inputs(**layout)
    visual = inputs["input_ids"] == model.family.image_token
    chosen = (visual if placeholder else ~visual) & inputs["attention_mask"].bool()
    return [row[mask] for row, mask in zip(states, chosen, strict=True)]


def same_rows(found: Tensor, expected: list[Tensor]) -> None:
    for row, values in zip(found, expected, strict=True):
        torch.testing.assert_close(row[: len(values)], values, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("layout", [{}, RAGGED], ids=["single", "ragged"])
@torch.no_grad()
def test_the_layer_ahead_is_read_before_it_runs(attention: str, layout: dict[str, Any]) -> None:
    """Its attention is that of the dense model, whose layers up to there are the same; and the cache stays clean."""
    model, eager = subject("llava", attention), subject("llava", "eager")
    needs = Needs(Rows("last", reduce="mean", ahead=True))
    tokens = read(model, "decoder.2", needs, **layout)
    maps = eager.dense(**eager.make_inputs(**layout), output_attentions=True).attentions[2]
    last = maps[:, :, -1].mean(1)  # [batch, length]
    same_rows(tokens.attention["last"], rows_of(model, last, True, **layout))


@torch.no_grad()
def test_the_layer_ahead_sees_compact_positions_and_what_is_left() -> None:
    model = subject("llava", "sdpa")
    reader = Reader(Needs(Rows("last", reduce="mean", ahead=True)))
    half = Stage("decoder.1", Random(), Keep(ratio=0.5))
    found = {}
    for positions in ("original", "compact"):
        with prune(model.model, half, Stage("decoder.2", reader, Keep(ratio=0.5)), positions=positions):
            cache = model.model(**model.make_inputs())[CACHE]
        assert cache.layers[2].keys.shape[2] == cache.layers[1].keys.shape[2]
        found[positions] = reader.seen[-1].attention["last"]
    assert found["compact"].shape[1] == model.family.per_image // 2
    assert not torch.allclose(found["compact"], found["original"])


@torch.no_grad()
def test_the_layer_ahead_is_refused_behind_a_filled_cache() -> None:
    model = subject("llava", "sdpa")
    with prune(model.model, Stage("decoder.2", Reader(Needs(Rows("last", ahead=True))), ALL)):
        out = model.model(**model.make_inputs())
        again = model.make_inputs()
        mask = torch.ones(1, 2 * again["input_ids"].shape[1], dtype=torch.long)
        with pytest.raises(NeedsError, match="behind a filled KV cache"):
            model.model(**{**again, "attention_mask": mask}, **{CACHE: out[CACHE]})


@torch.no_grad()
def test_visual_rows_of_the_decoder_and_their_largest_head() -> None:
    eager = subject("llava", "eager")
    needs = Needs([Rows("image", reduce="max"), Rows("text", reduce="max")])
    tokens = read(eager, "decoder.2", needs)
    inputs = eager.make_inputs()
    maps = eager.dense(**inputs, output_attentions=True).attentions[1].amax(1)[0]
    visual = (inputs["input_ids"] == eager.family.image_token)[0]
    after = torch.arange(len(visual)) > visual.nonzero().max()
    torch.testing.assert_close(tokens.attention["image"][0], maps[visual][:, visual].mean(0))
    torch.testing.assert_close(tokens.attention["text"][0], maps[after][:, visual].mean(0))


@torch.no_grad()
def test_all_heads_as_one() -> None:
    model = subject("llava", "sdpa")
    found = read(model, "input", Needs(Rows("cls", layer=-1, reduce="mean", joined=True))).attention["cls"]
    attention = model.dense.model.vision_tower.encoder.layers[-1].self_attn
    query, key = (output_of(model, getattr(attention, name), first) for name in ("q_proj", "k_proj"))
    weights = (query[:, :1] @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(-1)[0, 0]
    torch.testing.assert_close(found[0], weights[1:])


@pytest.mark.parametrize("kind", ["value", "hidden"])
@pytest.mark.parametrize("site", ["vision.2", "connector", "input"])
@torch.no_grad()
def test_states_of_the_encoder(kind: Any, site: str) -> None:
    model = subject("llava", "sdpa")
    wanted = [States(kind, layer=1, of_vision=True)]
    wanted += [States(kind, layer=1, of="cls", of_vision=True)] if site != "input" else []
    tokens = read(model, site, Needs(states=wanted), **RAGGED)
    layer = model.dense.model.vision_tower.encoder.layers[1]
    module = layer.self_attn.v_proj if kind == "value" else layer
    expected = output_of(model, module, first, **RAGGED)  # [3 images, 1 + patches, dim]
    found = tokens.states[wanted[0]]
    if kind == "value":
        expected = expected.unflatten(-1, (4, -1)).transpose(1, 2)
    if site == "input":
        joined = torch.cat([expected[0][..., 1:, :], expected[1][..., 1:, :]], -2)
        torch.testing.assert_close(found[0], joined)
        torch.testing.assert_close(found[1][..., : joined.shape[-2] // 2, :], expected[2][..., 1:, :])
        return
    torch.testing.assert_close(found, expected[..., 1:, :])
    torch.testing.assert_close(tokens.states[wanted[1]], expected[..., :1, :])


@torch.no_grad()
def test_states_of_a_pruned_encoder_are_those_of_the_tokens_left() -> None:
    model = subject("llava", "sdpa")
    wanted = [States("hidden", layer=1), States("value", layer=1)]
    before = Stage("vision.0", Random(), Keep(ratio=0.5))
    tokens = read(model, "vision.1", Needs(states=wanted), before)
    torch.testing.assert_close(tokens.states[wanted[0]], tokens.hidden)
    assert tokens.states[wanted[1]].abs().sum((1, 3)).min() > 0


@pytest.mark.parametrize("layout", [{}, RAGGED], ids=["single", "ragged"])
@torch.no_grad()
def test_text_its_keys_and_where_it_stands(layout: dict[str, Any]) -> None:
    model = subject("llava", "sdpa")
    keys = States("key", of="text")
    tokens = read(model, "decoder.2", Needs(text=True, states=keys), **layout)
    core = model.dense.model.language_model
    hidden = output_of(model, core.layers[1], first, **layout)
    assert tokens.text is not None
    assert tokens.question is not None
    assert tokens.text_valid is not None
    same_rows(tokens.text, rows_of(model, hidden, False, **layout))
    cache = model.dense(**model.make_inputs(**layout))[CACHE].layers[1].keys
    expected = rows_of(model, cache.transpose(1, 2), False, **layout)
    for row, values in enumerate(expected):
        found = tokens.states[keys][row].transpose(0, 1)[: len(values)]
        torch.testing.assert_close(found, values, atol=1e-5, rtol=1e-4)
    inputs = model.make_inputs(**layout)
    for row, ids in enumerate(inputs["input_ids"]):
        visual = ids == model.family.image_token
        real = inputs["attention_mask"][row].bool()
        columns = torch.arange(len(ids))
        text = columns[~visual & real]
        assert tokens.text_positions is not None
        assert tokens.positions is not None
        assert tokens.text_positions[row][: len(text)].tolist() == text.tolist()
        assert (tokens.text_positions[row][len(text) :] == -1).all()
        assert tokens.question[row][: len(text)].tolist() == (text > columns[visual].max()).tolist()
        assert not tokens.question[row][len(text) :].any()
        assert tokens.positions[row][: visual.sum()].tolist() == columns[visual].tolist()


@torch.no_grad()
def test_embeddings_and_normed_states() -> None:
    model = subject("llava", "sdpa")
    wanted = {(kind, of): States(kind, of=of) for kind in ("embedding", "normed") for of in ("visual", "text")}
    tokens = read(model, "decoder.2", Needs(states=wanted.values()), **RAGGED)
    core = model.dense.model.language_model
    embeds = output_of(model, core.layers[0], lambda a, k, o: a[0] if a else k["hidden_states"], **RAGGED)
    normed = core.norm(output_of(model, core.layers[1], first, **RAGGED))
    for (kind, of), states in wanted.items():
        source = embeds if kind == "embedding" else normed
        same_rows(tokens.states[states], rows_of(model, source, of == "visual", **RAGGED))


@pytest.mark.parametrize("family", ["llava", "llava_next"])
@torch.no_grad()
def test_the_patch_of_each_token(family: str) -> None:
    """Found again by looking up which patch's features a token has."""
    model = subject(family, "sdpa")
    layout = {"batch": 2, "images": (2, 1), "text": (3, 7)}
    tokens = read(model, "input", Needs(patches=True), **layout)
    projected = output_of(model, model.dense.model.multi_modal_projector, first, **layout)  # [tiles, patches, dim]
    assert tokens.patches is not None
    start = 0
    for row, count in enumerate(tokens.counts):
        tile, place = tokens.patches[row, :count].unbind(-1)
        assert (tile >= 0).sum() == (place >= 0).sum() > 0
        own = projected[start + tile.clamp(min=0), place.clamp(min=0)]
        real = tile >= 0
        torch.testing.assert_close(tokens.hidden[row, :count][real], own[real], atol=1e-5, rtol=1e-4)
        assert (tokens.patches[row, count:] == -1).all()
        start += int(tile.max()) + 1
    separators = (tokens.patches[0, : tokens.counts[0], 0] < 0).sum()
    assert (separators > 0) == (family == "llava_next")


@torch.no_grad()
def test_side_inputs_reach_the_policy_or_are_asked_for() -> None:
    model = subject("llava", "sdpa")
    given = torch.arange(3)
    tokens = read(model, "input", Needs(side="weights"), side={"weights": given})
    assert tokens.side["weights"] is given
    with pytest.raises(NeedsError, match=r"reads 'weights', which only you can give: set session.side\['weights'\]"):
        read(model, "input", Needs(side="weights"))
    with pytest.raises(NeedsError, match="only you can give"):
        read(model, "connector", Needs(side="weights"))


WRONG: dict[str, tuple[str, Callable[[], Needs], str]] = {
    "hidden states of a decoder layer": ("decoder.2", lambda: Needs(states=States("hidden")), "its own site alone"),
    "[CLS] of a sample": ("input", lambda: Needs(states=States("value", of="cls")), "belong to one image"),
    "text in the encoder": ("vision.1", lambda: Needs(states=States("key", of="text")), "no text in the vision"),
    "embeddings in the encoder": ("connector", lambda: Needs(states=States("embedding")), "exist in the language"),
    "a layer to come": ("vision.0", lambda: Needs(states=States("hidden", 1)), "allowed are 0 to 0"),
    "no such kind": ("input", lambda: Needs(states=States("keys")), "Did you mean 'key'"),  # type: ignore[arg-type]
    "normed [CLS]": ("input", lambda: Needs(states=States("normed", of="cls")), "of no layer"),
    "a reduction": ("input", lambda: Needs(Rows("cls", reduce="sum")), "allowed are 'mean', 'max'"),  # type: ignore[arg-type]
    "ahead of a layer": ("decoder.2", lambda: Needs(Rows("last", layer=1, ahead=True)), "give no layer"),
    "ahead in the encoder": ("vision.1", lambda: Needs(Rows("cls", ahead=True)), "give no layer"),
    "ahead of the input": ("input", lambda: Needs(Rows("last", ahead=True)), "exists only in the language model"),
}


@pytest.mark.parametrize("case", WRONG)
def test_reads_that_are_impossible(case: str) -> None:
    site, needs, message = WRONG[case]
    with pytest.raises(NeedsError, match=message):
        prune(subject("llava", "sdpa").model, Stage(site, Reader(needs()), ALL))


@pytest.mark.parametrize("family", [name for name, family in FAMILIES.items() if family.packed])
def test_patches_that_are_merged_have_no_number(family: str) -> None:
    model = subject(family, "sdpa")
    with pytest.raises(NeedsError, match="reads the patch of each visual token"):
        read(model, "input", Needs(patches=True))


class Two(Method):
    """Does nothing; its authors number tokens anew."""

    positions = "compact"

    def stages(self, depth: int) -> tuple[Stage, ...]:
        return (Stage("input", Random(), Keep(ratio=0.5)),)


@torch.no_grad()
def test_published_positions() -> None:
    model = subject("llava", "sdpa")
    logits = {}
    for positions in ("compact", "published", "original"):
        with prune(model.model, Two(), positions=positions) as session:  # type: ignore[arg-type]
            logits[positions] = model.model(**model.make_inputs()).logits[:, -1]
        assert session.positions == ("original" if positions == "original" else "compact")
    assert torch.equal(logits["compact"], logits["published"])
    assert not torch.allclose(logits["original"], logits["compact"])
    with pytest.raises(SessionError, match="one named method"):
        prune(model.model, Stage("input", Random(), ALL), positions="published")
