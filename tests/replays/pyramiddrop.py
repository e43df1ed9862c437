"""PyramidDrop, and the second stage of VScan, which is the same routine: a real decoder layer looks ahead."""

from __future__ import annotations

from typing import Any

import torch
from replays.common import Case, visual
from torch import Tensor
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaRotaryEmbedding

from prunekit import Keep
from prunekit.attention import attention_rows, look_ahead
from prunekit.policies.pyramiddrop import PyramidDrop
from prunekit.policy import PruningPolicy

UNUSED = frozenset({"in_attention_mask"})


def replay(case: Case) -> dict[str, Any]:
    return replayed(case, PyramidDrop().stages(32)[0].policy)


def replayed(case: Case, policy: PruningPolicy) -> dict[str, Any]:
    hidden, params = case["in_hidden"], case.params
    config = LlamaConfig(
        hidden_size=hidden.shape[-1], num_attention_heads=params["heads"], num_key_value_heads=params["heads"],
        intermediate_size=8, rms_norm_eps=1e-5, attn_implementation="sdpa",
    )  # fmt: skip
    layer, rotary = LlamaDecoderLayer(config, 0).eval(), LlamaRotaryEmbedding(config)
    layer.input_layernorm.weight.data.copy_(case["in_norm_weight"])
    layer.self_attn.q_proj.weight.data.copy_(case["in_wq"])
    layer.self_attn.k_proj.weight.data.copy_(case["in_wk"])
    answers: dict[str, Any] = {}
    queries, keys, rows = torch.zeros(0), torch.zeros(0), []
    for row, (start, images, text) in enumerate(
        zip(params["image_index"], params["cur_image"], params["prompt_len"], strict=True)
    ):
        length = text + images
        states = hidden[row : row + 1, :length]
        places = torch.arange(length)[None]
        shown: dict[str, Tensor] = {}

        def show(
            module: Any, query: Tensor, key: Tensor, mask: Any, shown: dict[str, Tensor] = shown, **kwargs: Any
        ) -> None:
            last = torch.tensor([[query.shape[2] - 1]])
            everything = torch.arange(query.shape[2])[None]
            shown["rows"] = attention_rows(module, query, key, mask, last, last >= 0, everything)
            shown["query"], shown["key"] = query[0, :, -1], key[0]

        look_ahead(layer, layer.self_attn, states, (), {"position_embeddings": rotary(states, places)}, show)
        if row == 0:
            queries = torch.zeros(len(hidden), *shown["query"].shape)
            keys = torch.zeros(len(hidden), shown["key"].shape[0], hidden.shape[1], shown["key"].shape[2])
        queries[row], keys[row, :, :length] = shown["query"], shown["key"]
        kept = torch.zeros(0, dtype=torch.long)
        if start >= 0:
            seen = shown["rows"][:, start : start + images]
            (wanted,) = policy.needs.attention
            tokens = visual(states[:, start : start + images], attention={wanted: seen, wanted.queries: seen})
            kept = policy.select(tokens, Keep(tokens=params["keep"][row])).kept[0]
        answers[f"out_keep_{row}"] = kept
        begin = max(start, 0)
        rows.append(torch.cat([places[0, :begin], begin + kept, places[0, begin + images :]]))
    answers["out_keep_full"] = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    numbers = [torch.arange(len(each)) for each in rows]  # compact, as the method says
    answers["out_position_ids"] = torch.nn.utils.rnn.pad_sequence(numbers, batch_first=True)
    return answers | {"out_q_last_rope": queries, "out_k_rope": keys}
