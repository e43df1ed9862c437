"""SparseVLM, version 1 and +; raters are found once, by all visual tokens."""

from __future__ import annotations

from typing import Any

import torch
from replays.common import Case, fed, visual

from prunekit.needs import States
from prunekit.policies.sparsevlm import SparseVLM
from prunekit.selection import merged

LAYERS = (2, 6, 15)


def replay(case: Case) -> dict[str, Any]:
    params = case.params
    plus = params["version"] == "v2"
    number = LAYERS.index(params["layer_idx"])
    policy: Any = SparseVLM(params["retain"], version="plus" if plus else "v1").stages(32)[number].policy
    embeds, text = case["in_visual_embeds"][None], case["in_text_embeds"][None]
    words = text.shape[1]
    whole = torch.ones(1, words, dtype=torch.bool)
    memory: dict[str, object] = {}
    fields: dict[str, Any] = {"text": text, "text_valid": whole, "question": whole, "memory": memory}
    at_input = {States("embedding"): embeds, States("embedding", of="text"): text}
    raters = policy.raters(visual(embeds, states=at_input, **fields))
    seen = case["in_attn_text2vis"][None]
    count = seen.shape[-1]
    (rows,) = policy.needs.attention
    hidden = torch.zeros(1, count, text.shape[2]) if plus else case["in_hidden_visual"][None]
    if plus:
        fields["positions"] = case["in_visual_position_ids"][None]
        fields["text_positions"] = case["in_text_position_ids"][None]
    tokens = visual(hidden, attention={rows: seen}, total=(params["n0"],), **fields)
    selection = policy.select(tokens, None)
    answers: dict[str, Any] = {"out_raters": (~raters[0]).long().argsort(stable=True)[: int(raters.sum())]}
    start, k = params["start"], min(params["k"], count - 1)
    if plus:
        kept = selection.kept[0]
        places = torch.cat([torch.arange(start), fields["positions"][0][kept], fields["text_positions"][0]])
        return answers | {"out_keep": kept, "out_position_ids": places}
    kept = fed(selection)[0, :k]
    gone = selection.scores[0].scatter(0, kept, -1).argsort(descending=True)
    recycled = gone[: int((selection.owner[0] >= k).sum())]
    assert set(recycled.tolist()) == set((selection.owner[0] >= k).nonzero().flatten().tolist())
    length = start + selection.kept.shape[1] + words
    return answers | {
        "out_keep": kept,
        "out_recycled": recycled,
        "out_merged_tokens": merged(hidden, selection)[0, k:],
        "out_position_ids": torch.arange(length),
    }
