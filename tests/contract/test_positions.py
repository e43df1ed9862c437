"""7. Kept tokens keep their positions; `positions="compact"` numbers them anew, as a shorter prompt would."""

from typing import Any

import pytest
import torch
from catalogue import ATTENTION, POLICIES, THOROUGH, Subject, subject
from invariants import LAYOUTS, assert_near, generate
from oracle import Alive, Inputs, row_of

from prunekit import Keep, Stage, prune
from prunekit.cache import CACHE
from prunekit.errors import PrunekitError
from prunekit.policies import CrossAttention, SelfAttention

HALF = Keep(ratio=0.5)


def native(model: Subject, row: Inputs, alive: Alive, number: int, tokens: torch.Tensor) -> list[torch.Tensor]:
    """Logits of the last position and of each further token, from a prompt that only ever had the kept tokens."""
    core = model.dense.model
    embeds: list[torch.Tensor] = []
    handle = core.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: embeds.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    core(**row, use_cache=False)
    handle.remove()
    kept = alive.decoder(0)[number][alive.real[number]]
    out = core.language_model(inputs_embeds=embeds[0][:, kept], use_cache=True)
    logits = [model.dense.lm_head(out.last_hidden_state[:, -1])]
    for token in tokens[:-1]:
        out = core.language_model(input_ids=token.view(1, 1), **{CACHE: out[CACHE]})
        logits.append(model.dense.lm_head(out.last_hidden_state[:, -1]))
    return logits


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("attention", ATTENTION)
@pytest.mark.parametrize("family", THOROUGH)
@torch.no_grad()
def test_compact_is_a_natively_shorter_prompt(family: str, attention: str, layout: str) -> None:
    model = subject(family, attention)
    inputs = model.make_inputs(**LAYOUTS[layout])
    with prune(model.model, Stage("input", SelfAttention(), HALF), positions="compact") as session:
        out = generate(model.model, inputs, 4)
    alive = Alive(session.trace, inputs, model.family)
    for number in range(len(inputs["input_ids"])):
        row = row_of(inputs, number, model.family)
        expected = native(model, row, alive, number, out.sequences[number, -4:])
        for step, (ours, theirs) in enumerate(zip(out.logits, expected, strict=True)):
            assert_near(ours[number], theirs[0], f"row {number}, step {step}")


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_compact_between_decoder_layers(attention: str) -> None:
    """Layers before the stage see original positions, layers from the stage on see 0, 1, 2, ..."""
    model = subject("llava", attention)
    inputs = model.make_inputs()
    with prune(model.model, Stage("decoder.2", CrossAttention(), HALF), positions="compact") as session:
        logits = model.model(**inputs, use_cache=False).logits
    alive = Alive(session.trace, inputs, model.family)
    text, states = model.dense.model.language_model, []
    handle = text.layers[2].register_forward_pre_hook(lambda module, args: states.append(args[0]))
    model.dense(**inputs, use_cache=False)
    handle.remove()
    hidden = states[0][:, alive.final()[0]]
    length = hidden.shape[1]
    numbers = torch.arange(length)[None]
    mask = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    for layer in text.layers[2:]:
        tables = text.rotary_emb(hidden, numbers)
        hidden = layer(hidden, attention_mask=mask, position_ids=numbers, position_embeddings=tables)
    expected = model.dense.lm_head(text.norm(hidden))
    assert_near(logits[:, alive.final()[0]], expected, "compact from layer 2 on")


@pytest.mark.parametrize("policy", ["self-visual-input", "cross-text", "star"])
@torch.no_grad()
def test_compact_differs_from_original(policy: str) -> None:
    model = subject("llava", "sdpa")
    inputs = model.make_inputs()
    logits: dict[Any, torch.Tensor] = {}
    for positions in ("original", "compact"):
        with prune(model.model, *POLICIES[policy].build(HALF), positions=positions):
            logits[positions] = model.model(**inputs).logits[:, -1]
    assert (logits["original"] - logits["compact"]).abs().max() > 1e-4


@torch.no_grad()
def test_explicit_position_ids_are_kept() -> None:
    """A caller's own positions go where the tokens go."""
    model = subject("llava", "sdpa")
    inputs = model.make_inputs()
    numbers = torch.arange(inputs["input_ids"].shape[1])[None]
    for shift in (0, 5):
        with prune(model.model, Stage("input", SelfAttention(), HALF)):
            moved = model.model(**inputs, position_ids=numbers + shift).logits[:, -1]
            plain = model.model(**inputs).logits[:, -1]
        assert_near(moved, plain, "rotary positions are relative", 1e-4)
    stretched = numbers * 3
    with prune(model.model, Stage("input", SelfAttention(), HALF)):
        assert (model.model(**inputs, position_ids=stretched).logits[:, -1] - plain).abs().max() > 1e-4


def test_an_unknown_choice_is_refused() -> None:
    model = subject("llava", "sdpa")
    with (
        pytest.raises(PrunekitError, match=r"(?s)compcat.*original.*compact"),
        prune(model.model, Stage("input", SelfAttention(), HALF), positions="compcat"),  # type: ignore[arg-type]
    ):
        pass
