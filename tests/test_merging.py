"""Merging is data: a selection names owners and weights, and the core averages."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from catalogue import subject

from prunekit import Keep, PruningPolicy, Selection, Stage, VisualTokens, prune


@dataclass(frozen=True)
class Pairs(PruningPolicy):
    """Keeps every second token, averaged with the next one, which counts three times; the last token is dropped."""

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        batch, visual = tokens.source.shape
        place = torch.arange(visual)
        owner = (place // 2).masked_fill(place == visual - 1, -1)
        weight = 1.0 + 2 * (place % 2)
        kept = torch.arange(0, visual, 2).expand(batch, -1)
        return Selection(kept, owner=owner.expand(batch, -1), weight=weight.expand(batch, -1))


@pytest.mark.parametrize("text", [(6, 6), (3, 8)], ids=["alike", "padded"])
@torch.no_grad()
def test_merged_tokens_are_weighted_averages(text: tuple[int, int]) -> None:
    model = subject("llava", "sdpa")
    inputs = model.make_inputs(batch=2, text=text)
    with prune(model.model, Stage("input", Pairs(), Keep(ratio=0.5))):
        merged = model.model(**inputs).logits
    states: list[dict[str, torch.Tensor]] = []
    core = model.dense.model
    handle = core.language_model.register_forward_pre_hook(lambda m, a, k: states.append(k), with_kwargs=True)
    model.dense(**inputs)
    handle.remove()
    for row, embeds in enumerate(states[0]["inputs_embeds"]):
        visual = inputs["input_ids"][row] == model.family.image_token
        columns = visual.nonzero().flatten()
        for first, second in zip(columns[:-2:2], columns[1:-2:2], strict=True):
            embeds[first] = (embeds[first] + 3 * embeds[second]) / 4
        stays = inputs["attention_mask"][row].bool()
        stays[columns[1::2]] = False
        native = core.language_model(inputs_embeds=embeds[stays][None], position_ids=stays.nonzero().T)
        expected = model.dense.lm_head(native.last_hidden_state[0])
        torch.testing.assert_close(merged[row][stays], expected, atol=1e-5, rtol=1e-4)
