"""A later question on the same image: on the pruned cache, or on the whole image, scored anew for the new question."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from catalogue import subject
from invariants import assert_near, positions_behind
from oracle import Alive, masked
from torch import Tensor

from prunekit import Keep, Stage, prune
from prunekit.cache import CACHE
from prunekit.policies import CrossAttention, SelfAttention

STAGES = (
    Stage("input", SelfAttention(queries="embedding"), Keep(ratio=0.75)),
    Stage("decoder.2", CrossAttention(), Keep(ratio=0.25)),
)
FAMILIES = ("llava", "qwen2_5_vl", "qwen3_vl", "gemma3", "smolvlm", "mistral3")


def follow_up(inputs: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """More words, and the whole conversation with them."""
    batch = len(inputs["input_ids"])
    more = torch.arange(5 * batch).view(batch, 5) % 9 + 20
    whole = dict(inputs)
    for name, tail in (("input_ids", more), ("attention_mask", torch.ones_like(more))):
        whole[name] = torch.cat([inputs[name], tail], 1)
    for name in ("token_type_ids", "mm_token_type_ids"):
        if name in inputs:
            whole[name] = torch.cat([inputs[name], torch.zeros_like(more)], 1)
    return more, whole


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_pruned_once(family: str) -> None:
    """The new question reads the cache that the first one left; nothing is scored again."""
    model = subject(family, "sdpa")
    inputs = model.make_inputs(batch=2, images=(1, 2), text=(6, 4))
    more, whole = follow_up(inputs)

    def converse(network: Any) -> list[Tensor]:
        cache = network(**inputs, use_cache=True)[CACHE]
        new = {"input_ids": more, "attention_mask": whole["attention_mask"]}
        if "token_type_ids" in inputs and family == "gemma3":
            new["token_type_ids"] = torch.zeros_like(more)
        out = network(**new, **positions_behind(network, whole["attention_mask"], 5), **{CACHE: cache})
        mask = torch.cat([whole["attention_mask"], torch.ones(2, 1, dtype=torch.long)], 1)
        token = {"input_ids": torch.tensor([[21], [22]]), "attention_mask": mask, **positions_behind(network, mask, 1)}
        return [out.logits, network(**token, **{CACHE: out[CACHE]}).logits]

    with prune(model.model, *STAGES) as session:
        actual = converse(model.model)
        assert len(session.trace) == len(STAGES)
    with masked(model.dense, Alive(session.trace, inputs, model.family), model.family):
        expected = converse(model.dense)
    for ours, theirs in zip(actual, expected, strict=True):
        assert_near(ours, theirs, "second question", 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_scored_anew(family: str) -> None:
    """The whole conversation without a cache is a prompt of its own: the new question chooses its tokens."""
    model = subject(family, "sdpa")
    inputs = model.make_inputs(batch=2, images=(1, 2), text=(6, 4))
    _, whole = follow_up(inputs)
    with prune(model.model, *STAGES) as session:
        model.model(**inputs)
        first = session.trace[-1].kept
        logits = model.model(**whole).logits
    records = session.trace[len(STAGES) :]
    assert not torch.equal(records[-1].kept, first), "the new question chose what the old one had chosen"
    alive = Alive(records, whole, model.family)
    with masked(model.dense, alive, model.family):
        expected = model.dense(**whole).logits
    assert_near(logits[:, -1], expected[:, -1], "scored anew", 2e-5)


@torch.no_grad()
def test_the_image_is_encoded_once() -> None:
    """Features made inside the session serve several questions, the attention read from the encoder with them."""
    model = subject("llava", "sdpa").model
    inputs = subject("llava", "sdpa").make_inputs()
    _, whole = follow_up(inputs)
    stages = (Stage("input", SelfAttention(), Keep(ratio=0.5)), STAGES[1])
    runs = []
    handle = model.model.vision_tower.register_forward_hook(lambda *_: runs.append(1))
    with prune(model, *stages):
        expected = [model(**each).logits[:, -1] for each in (inputs, whole)]
        features = model.get_image_features(pixel_values=inputs["pixel_values"])
        runs.clear()
        for prompt, logits in zip((inputs, whole), expected, strict=True):
            text = {name: value for name, value in prompt.items() if name != "pixel_values"}
            again = model(**text, mm_encoder_outputs={"image": features}).logits
            assert_near(again[:, -1], logits, "features used again")
    handle.remove()
    assert not runs
