"""Granite 4 Vision adds image features between decoder layers only: its visual tokens enter as zeros."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from prunekit import Keep, ScoringPolicy, Stage, VisualTokens, prune
from prunekit.errors import NeedsError
from prunekit.models.tiny.builders import tiny_random
from prunekit.policies import SparseVLM


@dataclass(frozen=True)
class Loudest(ScoringPolicy):
    """Keep the visual tokens with the largest states."""

    def score(self, tokens: VisualTokens) -> Tensor:
        return tokens.hidden.norm(dim=-1)


@torch.no_grad()
def test_a_longer_prompt_on_another_image_is_no_replay() -> None:
    model, make_inputs = tiny_random("granite4_vision")
    first, second = make_inputs(seed=1), make_inputs(seed=2)
    second["input_ids"] = torch.cat([first["input_ids"], first["input_ids"][:, -1:]], dim=1)
    second["attention_mask"] = torch.ones_like(second["input_ids"])
    stage, kept = Stage("input", Loudest(), Keep(ratio=0.25)), []
    for prompts in ([first, second], [second]):
        with prune(model, stage) as session:
            for inputs in prompts:
                model(**inputs, use_cache=False)
            assert len(session.trace) == len(prompts)
            kept.append(session.trace[-1].kept)
    assert torch.equal(*kept)


@torch.no_grad()
def test_embeddings_of_visual_tokens_are_refused() -> None:
    model, make_inputs = tiny_random("granite4_vision")
    with prune(model, SparseVLM()), pytest.raises(NeedsError, match=r"Granite4Vision.*between decoder layers"):
        model(**make_inputs())
