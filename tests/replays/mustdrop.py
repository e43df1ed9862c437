"""MustDrop's three parts, as released."""

from __future__ import annotations

from typing import Any

import torch
from replays.common import Case, visual

from prunekit.policies.mustdrop import MustDrop
from prunekit.selection import merged


def replay(case: Case) -> dict[str, Any]:
    method = MustDrop(variant="released")
    window, keys, *_ = (stage.policy for stage in method.stages(32))
    if case.name.startswith("vit"):
        return merging(case, window)
    if case.name.startswith("keyset"):
        seen = case["in_cls_attn_23"].mean(1)
        policy: Any = keys
        return {"out_key_set": policy.chosen(visual(seen[..., None], attention={"cls": seen}))}
    thresholds = {"of_all": case.params["global_thr"], "of_one": case.params["individual_thr"]}
    policy = MustDrop(**thresholds).stages(32)[2].policy
    seen = case["in_attn_text2vis"][None]
    marked = case["in_key_set"]
    memory: dict[str, object] = {"MustDrop keys": marked[None]}
    tokens = visual(seen.mean((1, 2))[..., None], attention={"text": seen}, memory=memory)
    kept = policy.select(tokens, None).kept[0]
    length = case.params["start"] + len(kept) + seen.shape[2]
    return {
        "out_keep": kept,
        "out_key_set": (kept[None] == marked[:, None]).long().argmax(1),
        "out_position_ids": torch.arange(length),
    }


def merging(case: Case, policy: Any) -> dict[str, Any]:
    hidden, side = case["in_hidden"], case.params["grid"]
    tokens = visual(hidden[:, 1:], grid=(side, side), per_image=side**2, prefix=1)
    selection = policy.select(tokens, None)
    patches = torch.nn.functional.one_hot(selection.owner, selection.kept.shape[1]).transpose(1, 2)
    source = torch.nn.functional.pad(patches, (1, 0, 1, 0))
    source[:, 0, 0] = 1
    made = torch.cat([hidden[:, :1], merged(tokens.hidden, selection)], 1)
    return {"out_tokens": made, "out_size": source.sum(-1), "out_source": source}
