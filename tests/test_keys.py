"""Keys that a policy reads are those that the layer's attention receives."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from catalogue import ATTENTION, subject
from einops import rearrange

from prunekit import Keep, Keys, Needs, PruningPolicy, Selection, Stage, VisualTokens, prune
from prunekit.cache import CACHE
from prunekit.policies import SelfAttention

SEEN: list[VisualTokens] = []


@dataclass(frozen=True)
class Reader(PruningPolicy):
    """Keeps everything and shows what it was given."""

    needs = Needs(keys=True)

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        SEEN.append(tokens)
        return Selection.everything(tokens)


class Earlier(Reader):
    needs = Needs(keys=Keys(layer=0, of_vision=True))


@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_keys_of_the_decoder_are_those_of_its_cache(attention: str) -> None:
    model = subject("llava", attention)
    inputs = model.make_inputs(batch=2, images=(2, 1), text=(3, 7))
    with prune(model.model, Stage("decoder.2", Reader(), Keep(ratio=1.0))):
        cache = model.model(**inputs)[CACHE]
    keys, visual = SEEN[-1].keys, inputs["input_ids"] == model.family.image_token
    assert keys is not None
    for row, count in enumerate(visual.sum(1).tolist()):
        expected = cache.layers[1].keys[row][:, visual[row]]
        torch.testing.assert_close(keys[row][:, :count], expected)


@pytest.mark.parametrize(("policy", "layer"), [(Reader(), -2), (Earlier(), 0)])
@torch.no_grad()
def test_keys_of_the_encoder_are_its_projections(policy: Reader, layer: int) -> None:
    model = subject("llava", "sdpa")
    inputs = model.make_inputs(batch=2, images=(2, 1), text=(3, 7))
    states: list[torch.Tensor] = []
    attention = model.dense.model.vision_tower.encoder.layers[layer].self_attn
    handle = attention.k_proj.register_forward_hook(lambda module, args, output: states.append(output))
    model.dense(**inputs)
    handle.remove()
    with prune(model.model, Stage("input", policy, Keep(ratio=1.0))):
        model.model(**inputs)
    keys = SEEN[-1].keys
    assert keys is not None
    images = rearrange(states[0][:, 1:], "images patches (heads dim) -> images heads patches dim", heads=4)
    torch.testing.assert_close(keys[0], torch.cat([images[0], images[1]], dim=1))
    torch.testing.assert_close(keys[1][:, : model.family.per_image], images[2])


@torch.no_grad()
def test_keys_of_a_pruned_encoder_are_those_of_the_patches_left() -> None:
    model = subject("llava", "sdpa")
    before = Stage("vision.0", SelfAttention("embedding"), Keep(ratio=0.5))
    with prune(model.model, before, Stage("vision.2", Reader(), Keep(ratio=0.5))):
        model.model(**model.make_inputs())
    tokens = SEEN[-1]
    assert tokens.keys is not None
    assert tokens.keys.shape[2] == tokens.source.shape[1] == model.family.per_image // 2
    assert tokens.keys.abs().sum(-1).min() > 0
