"""DART as its authors released it; a share becomes a number in the caller."""

from __future__ import annotations

from typing import Any

import torch
from replays.common import Case, visual

from prunekit.needs import Keys, States
from prunekit.policies.dart import DART


def replay(case: Case) -> dict[str, Any]:
    params = case.params
    start, many = params["start"], params["n"]
    pivots = params["pivot_image"] + params["pivot_text"]
    keep = params["max_num_trunction"] or many * (1 - params["reduction_ratio"])
    method = DART(
        int(keep // pivots) * pivots, images=params["pivot_image"], texts=params["pivot_text"], variant="released"
    )
    (stage,) = method.stages(32)
    hidden, keys = case["in_hidden_normed"][None], case["in_keys"][None]
    span, after = slice(start, start + many), slice(start + many, None)
    text = hidden[:, after]
    tokens = visual(
        hidden[:, span],
        keys=keys[:, :, span],
        text=text,
        question=torch.ones(text.shape[:2], dtype=torch.bool),
        positions=torch.arange(start, start + many)[None],
        text_positions=torch.arange(start + many, hidden.shape[1])[None],
        states={
            Keys(of_vision=False): keys[:, :, span],
            States("key", of="text"): keys[:, :, after],
            States("normed"): hidden[:, span],
            States("normed", of="text"): text,
        },
    )
    policy: Any = stage.policy
    return {"out_keep": policy.select(tokens, None).kept[0], "out_pivot_order": policy.pivots(tokens)[0] + start}
