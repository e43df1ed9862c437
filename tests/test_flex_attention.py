"""FlexAttention: block masks are cut as other masks are. The kernel itself runs uncompiled here."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariants import LAYOUTS, assert_near, generate
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from prunekit import Keep, Stage, prune
from prunekit.masks import cut_mask
from prunekit.models.tiny.builders import tiny_random
from prunekit.policies import CrossAttention, SelfAttention

pytestmark = [
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # torch's own, while transformers compiles a block mask
]


def _written_out(mask: Any, batch: int) -> Tensor:
    rows, keys = mask.seq_lengths
    index = torch.meshgrid(*(torch.arange(n) for n in (batch, rows, keys)), indexing="ij")
    return mask.mask_mod(index[0], index[0] * 0, index[1], index[2])


def test_a_cut_block_mask_is_the_cut_of_the_mask() -> None:
    generator = torch.Generator().manual_seed(0)
    full = torch.rand(2, 9, 9, generator=generator) > 0.4
    blocks = create_block_mask(lambda b, h, q, kv: full[b, q, kv], 2, None, 9, 9, device="cpu")
    keys, rows = torch.tensor([[0, 3, 4, 8], [-1, 1, 2, 7]]), torch.tensor([[3, 8], [-1, 7]])
    for queries in (rows, None):
        expected = cut_mask(full[:, None], keys, queries)[:, 0]
        actual = _written_out(cut_mask(blocks, keys, queries), 2)
        assert torch.equal(actual, expected)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ragged"])
@torch.no_grad()
def test_sessions_under_flex_attention(monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    def uncompiled(query: Tensor, key: Tensor, value: Tensor, training: bool = False, **kwargs: Any) -> Any:
        return flex_attention(query, key, value, **kwargs)

    monkeypatch.setattr("transformers.integrations.flex_attention.compile_friendly_flex_attention", uncompiled)
    stages = (
        Stage("input", SelfAttention(), Keep(ratio=0.5)),
        Stage("decoder.2", CrossAttention(), Keep(ratio=0.25)),
    )
    results = []
    for attention in ("sdpa", "flex_attention"):
        model, make_inputs = tiny_random("llava", key_heads=4)
        model.generation_config.eos_token_id = None
        model.model.language_model.set_attn_implementation(attention)
        inputs = make_inputs(**LAYOUTS[layout])
        with prune(model, *stages) as session:
            results.append((generate(model, inputs, 3), session.trace))
    (plain, trace), (flex, traced) = results
    for ours, theirs in zip(flex.logits, plain.logits, strict=True):
        assert_near(ours, theirs, "flex attention")
    assert all(torch.equal(a.kept, b.kept) for a, b in zip(trace, traced, strict=True))
