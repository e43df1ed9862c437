"""FastV; the rounding of a share is the caller's."""

from __future__ import annotations

from typing import Any

import torch
from replays.common import Case, visual

from prunekit.policies import FastV


def replay(case: Case) -> dict[str, Any]:
    params = case.params
    start, many, text = params["sys_length"], params["image_length"], params["text_length"]
    keep = params["rank"] if params["variant"] == "inplace" else round(many * (1 - params["ratio"]))
    (stage,) = FastV(keep=keep).stages(32)
    seen = case["in_last_row"].mean(0)[None, start : start + many]
    (rows,) = stage.policy.needs.attention
    tokens = visual(seen[..., None], attention={rows: seen, rows.queries: seen})
    kept = stage.policy.select(tokens, stage.keep).kept[0]
    whole = torch.cat([torch.arange(start), start + kept, start + many + torch.arange(text)])
    return {"out_keep": kept, "out_keep_full": whole, "out_position_ids": whole}
