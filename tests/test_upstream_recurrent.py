"""The same contract for decoder layers that keep a state instead of keys: what transformers has to do with them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariants import positions_behind
from test_upstream import hooked, relied_on_by

from prunekit.adapter import adapter_for
from prunekit.cache import CACHE
from prunekit.models.tiny.builders import tiny_random


@pytest.mark.parametrize("family", ["qwen3_5", "lfm2_vl", "nemotron_h_omni"])
@torch.no_grad()
def test_layers_without_keys_are_told_which_of_the_new_columns_are_tokens(family: str) -> None:
    """In a prompt by a mask of its own columns, [batch, length]; token by token by none."""
    require, (model, make_inputs) = relied_on_by("prunekit/_decoder.py", "prunekit/_language.py"), tiny_random(family)
    adapter, inputs, masks = adapter_for(model), make_inputs(batch=2, text=(4, 7)), []
    recurrent = [layer for layer in range(adapter.depth) if adapter.kinds[layer] in ("linear_attention", "conv")]

    def note(module: object, args: Any, kwargs: dict[str, Any]) -> None:
        masks.append(kwargs["attention_mask"])

    layers = adapter.decoder_layers
    with hooked(*(layers[at].register_forward_pre_hook(note, with_kwargs=True) for at in recurrent)):
        cache = model(**inputs, use_cache=True)[CACHE]
        prompt, masks = masks, []
        whole = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
        model(
            input_ids=torch.full((2, 1), 20),
            attention_mask=whole,
            **{CACHE: cache, **positions_behind(model, whole, 1)},
        )
    require(recurrent, f"config.layer_types of {family} does not call any layer linear_attention or conv")
    sent = inputs["attention_mask"]
    fits = all(mask is not None and mask.shape == sent.shape and (mask == sent).all() for mask in prompt)
    require(fits, f"recurrent layers of {family} are not given the mask [batch, length] of the prompt")
    require(all(mask is None for mask in masks), f"recurrent layers of {family} are given a mask with a single token")
    counting = [hasattr(cache.layers[at], "get_seq_length") for at in recurrent]
    require(not any(counting), f"caches of recurrent layers of {family} count tokens")
