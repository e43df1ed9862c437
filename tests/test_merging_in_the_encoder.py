"""Merging before the language model: inside the encoder, and between encoder and projector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from catalogue import ATTENTION, FAMILIES, Subject, subject
from invariants import assert_near
from torch import Tensor

from prunekit import Keep, Needs, PruningPolicy, Selection, Stage, States, VisualTokens, prune
from prunekit.adapter import adapter_for
from prunekit.errors import PolicyError, UnsupportedInputError
from prunekit.patches import Encoded

CONNECTORS = [name for name in FAMILIES if adapter_for(subject(name, "sdpa").model).connector_site]
INSIDE = [name for name, family in FAMILIES.items() if family.sites]


@dataclass(frozen=True)
class Pairs(PruningPolicy):
    """Keeps every second token, averaged with the next one, which counts three times; the last token is dropped."""

    log_size: bool = False
    seen: list[VisualTokens] = field(default_factory=list)

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        self.seen.append(tokens)
        place = torch.arange(tokens.source.shape[1])
        owner = (place // 2).masked_fill(place == len(place) - 1, -1)
        rows = tokens.source.shape[0]
        kept = place[::2].expand(rows, -1)
        bias = torch.log(1.0 + torch.arange(len(place[::2]))).expand(rows, -1) if self.log_size else None
        weight = (1.0 + 2 * (place % 2)).expand(rows, -1)
        return Selection(kept, owner=owner.expand(rows, -1), weight=weight, bias=bias)


def pairs(states: Tensor) -> Tensor:
    """What `Pairs` makes of states [..., tokens, dim], at the kept tokens; others stay as they are."""
    states = states.clone()
    first, second = states[..., 0:-2:2, :].clone(), states[..., 1:-2:2, :]
    states[..., 0:-2:2, :] = (first + 3 * second) / 4
    return states


def kept_features(model: Subject, items: Any, **layout: Any) -> Tensor:
    """What enters the first decoder layer of a session, of the visual tokens of the only row."""
    found: list[Tensor] = []
    policy = items[0].policy
    with prune(model.model, *items) as session:
        last = Stage("decoder.1", Shower(found), Keep(ratio=0.5))
    with prune(model.model, *items, last) as session:
        model.model(**model.make_inputs(**layout))
    assert policy.seen
    assert session.trace[0].kept.shape == session.trace[1].kept.shape
    return found[0][0]


@dataclass(frozen=True)
class Shower(PruningPolicy):
    """Keeps everything and hands out the embeddings that entered the language model."""

    found: list[Tensor]
    needs = Needs(states=States("embedding"))

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        self.found.append(tokens.states[States("embedding")])
        return Selection.everything(tokens)


def plain_features(model: Subject, module: Any, change: Callable[[Tensor], Tensor], before: bool) -> Tensor:
    """Features of a plain model in which a module's input (or output) was changed: [tokens, dim]."""

    def hook(module: Any, args: Any, output: Any = None) -> Any:
        if before:
            return (change(args[0]), *args[1:])
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    handle = module.register_forward_pre_hook(hook) if before else module.register_forward_hook(hook)
    inputs = model.make_inputs()
    core: Any = model.dense.model
    found: list[Tensor] = []
    spy = core.language_model if hasattr(core, "language_model") else core.text_model
    second = spy.register_forward_pre_hook(lambda m, a, k: found.append(k["inputs_embeds"]), with_kwargs=True)
    try:
        model.dense(**inputs)
    finally:
        handle.remove()
        second.remove()
    return found[0][0][(inputs["input_ids"] == model.family.image_token)[0]]


@pytest.mark.parametrize("family", CONNECTORS)
@torch.no_grad()
def test_merging_before_the_projector(family: str) -> None:
    """The kept features are those of a plain model whose projector is given merged ones."""
    model = subject(family, "sdpa")
    policy = Pairs()
    found = kept_features(model, (Stage("connector", policy, Keep(ratio=0.5)),))
    adapter = adapter_for(model.dense)
    assert adapter.projector is not None
    states, groups = (
        policy.seen[0].hidden,
        adapter.patches_of_tokens(
            (size_of(model) // patch_of(model)) ** 2,
            Encoded("image"),
        ),
    )

    def change(features: Tensor) -> Tensor:
        assert features.shape[0] == 1
        if features.shape[1] == states.shape[1]:
            return pairs(features)
        grouped = features[:, groups]  # [1, tokens, patches of a token, dim]
        merged = pairs(grouped.flatten(2)).unflatten(-1, grouped.shape[2:])
        changed = features.clone()
        changed[:, groups.flatten()] = merged.flatten(1, 2)
        return changed

    expected = plain_features(model, adapter.projector, change, before=True)
    assert_near(found, expected[::2], "features")


def size_of(model: Subject) -> int:
    size = model.model.config.vision_config.image_size
    return int(size if isinstance(size, int) else size[0])


def patch_of(model: Subject) -> int:
    size = model.model.config.vision_config.patch_size
    return int(size if isinstance(size, int) else size[0])


@pytest.mark.parametrize("log_size", [False, True], ids=["plain", "proportional"])
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_merging_inside_the_encoder(attention: str, log_size: bool) -> None:
    """As in a plain encoder whose later layers do not look at what is gone, and weigh what is left."""
    model = subject("llava", attention)
    found = kept_features(model, (Stage("vision.0", Pairs(log_size), Keep(ratio=0.5)),))
    layers = model.dense.model.vision_tower.encoder.layers
    patches = layout_of(model)
    bias = torch.full((1 + patches,), torch.finfo(torch.float32).min)
    bias[0] = 0.0
    bias[1::2] = torch.log(1.0 + torch.arange(patches // 2)) if log_size else 0.0

    def masked(module: Any, args: Any, kwargs: Any) -> Any:
        mask = bias.expand(1, 1, 1 + patches, -1)
        return (args[0], mask, *args[2:]), {k: v for k, v in kwargs.items() if k != "attention_mask"}

    handles = [layer.register_forward_pre_hook(masked, with_kwargs=True) for layer in layers[1:]]
    try:
        expected = plain_features(
            model, layers[0], lambda states: torch.cat([states[:, :1], pairs(states[:, 1:])], 1), before=False
        )
    finally:
        for handle in handles:
            handle.remove()
    assert_near(found, expected[::2], "features")


def layout_of(model: Subject) -> int:
    return model.family.per_image


@dataclass(frozen=True)
class Uneven(PruningPolicy):
    """Keeps another number of tokens of every image, decided by what it shows."""

    needs_keep = False

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        counts = tuple(3 + int(each) for each in tokens.hidden.argmax(-1).sum(1) % 4)
        place = torch.arange(tokens.source.shape[1]).expand(len(counts), -1)
        return Selection(place.masked_fill(place >= torch.tensor(counts)[:, None], -1)[:, : max(counts)], counts)


@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", ["llava", "paligemma", "idefics3", "qwen2_vl"])
@torch.no_grad()
def test_images_may_keep_different_numbers_inside_the_encoder(family: str, attention: str) -> None:
    """Every image's features are those that it has alone."""
    model = subject(family, attention)
    inputs = model.make_inputs(batch=4, seed=3)
    with prune(model.model, Stage("vision.0", Uneven())) as session:
        together = model.model(**inputs).logits
        trace = session.trace[-1]
        counts = (trace.kept >= 0).sum(1).tolist()
        assert len(set(counts)) > 1, "no power"
        for row, count in enumerate(counts):
            alone = model.model(**inputs.rows[row]).logits
            single = session.trace[-1]
            assert single.kept[0].tolist() == trace.kept[row][:count].tolist()
            assert_near(together[row, -1], alone[0, -1], f"row {row}")


@torch.no_grad()
def test_an_encoder_without_a_mask_refuses_it() -> None:
    model = subject("internvl", "sdpa")
    with (
        prune(model.model, Stage("vision.0", Uneven())),
        pytest.raises(UnsupportedInputError, match="InternVLVisionLayer takes no attention mask"),
    ):
        model.model(**model.make_inputs(batch=4, seed=3))


@torch.no_grad()
def test_mix_takes_any_weights_and_other_states() -> None:
    @dataclass(frozen=True)
    class WithCls(PruningPolicy):
        needs = Needs(states=States("hidden", of="cls"))

        def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
            cls = tokens.states[States("hidden", of="cls")]
            mix = torch.zeros(1, 2, tokens.source.shape[1] + 1)
            mix[0, 0, -1], mix[0, 1, 4], mix[0, 1, 5] = 1.0, 0.5, 2.0
            return Selection(torch.tensor([[0, 4]]), mix=mix, extra=cls)

    model = subject("llava", "sdpa")
    found: list[Tensor] = []
    with prune(
        model.model, Stage("connector", WithCls(), Keep(tokens=2)), Stage("decoder.1", Shower(found), Keep(tokens=2))
    ):
        model.model(**model.make_inputs())
    dense = model.dense.model
    whole = dense.vision_tower(model.make_inputs()["pixel_values"], output_hidden_states=True).hidden_states[-2][0]
    expected = dense.multi_modal_projector(torch.stack([whole[0], 0.5 * whole[5] + 2 * whole[6]])[None])[0]
    assert_near(found[0][0], expected, "features")


def test_what_merging_cannot_do() -> None:
    def selects(make: Callable[[VisualTokens], Selection]) -> Any:
        @dataclass(frozen=True)
        class Made(PruningPolicy):
            def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
                return make(tokens)

        return Made()

    def half(tokens: VisualTokens, **fields: Any) -> Selection:
        rows, width = tokens.source.shape
        return Selection(torch.arange(width // 2).expand(rows, -1), **fields)

    def zeros(*more: int) -> Callable[[VisualTokens], Tensor]:
        return lambda tokens: torch.zeros(tokens.source.shape[0], *more)

    def count(tokens: VisualTokens) -> int:
        return int(tokens.source.shape[1])

    def both(tokens: VisualTokens) -> Selection:
        return half(tokens, owner=tokens.source, mix=zeros(count(tokens) // 2, count(tokens))(tokens))

    cases: dict[str, tuple[str, str, Any, str]] = {
        "owner and mix": ("llava", "input", both, "not both"),
        "mix": (
            "llava",
            "input",
            lambda t: half(t, mix=zeros(count(t) // 2, 1)(t)),
            r"Selection.mix must be \[batch, k",
        ),
        "bias": ("llava", "input", lambda t: half(t, bias=zeros(count(t) // 2)(t)), "inside the vision"),
        "packed bias": ("qwen2_vl", "vision.0", lambda t: half(t, bias=zeros(count(t) // 2)(t)), "takes no mask"),
    }
    for family, site, make, message in cases.values():
        model = subject(family, "sdpa")
        with (
            pytest.raises(PolicyError, match=message),
            prune(model.model, Stage(site, selects(make), Keep(ratio=0.5))),
        ):
            model.model(**model.make_inputs())
