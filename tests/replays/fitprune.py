"""FitPrune behind one layer."""

from __future__ import annotations

from typing import Any

from replays.common import Case, visual

from prunekit.policies.fitprune import FitPrune


def replay(case: Case) -> dict[str, Any]:
    params = case.params
    deletions = [0] * 32
    deletions[params["layer_idx"]] = params["delete"]
    (stage,) = FitPrune(tuple(deletions), visual=params["n"]).stages(32)
    assert stage.site == f"decoder.{params['layer_idx'] + 1}"
    rows = [case["in_attn_vis2vis"], case["in_attn_text2vis"]]
    seen = [each.amax(0).mean(0)[None] for each in rows]  # as the core reads them
    tokens = visual(seen[0][..., None], attention=dict(zip(stage.policy.needs.attention, seen, strict=True)))
    kept = stage.policy.select(tokens, stage.keep).kept[0]
    gone = [number for number in range(params["n"]) if number not in set(kept.tolist())]
    return {"out_keep": kept, "out_deleted": gone}
