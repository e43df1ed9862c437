"""Embeddings that a language model makes by itself cannot be read."""

from __future__ import annotations

import pytest
import torch

from prunekit import prune
from prunekit.errors import NeedsError
from prunekit.models.tiny import tiny_random
from prunekit.policies import SparseVLM


@pytest.mark.parametrize("family", ["chameleon", "phi4_multimodal"])
@torch.no_grad()
def test_refused_by_name(family: str) -> None:
    model, make_inputs = tiny_random(family)
    with prune(model, SparseVLM()), pytest.raises(NeedsError, match="is given token ids and makes them itself"):
        model(**make_inputs())
