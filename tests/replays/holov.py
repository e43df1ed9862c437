"""HoloV's released code: -1 stands for a zero vector."""

from __future__ import annotations

from typing import Any

from replays.common import Case, fed, visual

from prunekit.policies.holov import HoloV


def replay(case: Case) -> dict[str, Any]:
    (stage,) = HoloV(case.params["keep"], crops=case.params["crops"], variant="released").stages(32)
    seen = case["in_cls_attn"]
    (rows,) = stage.policy.needs.attention
    tokens = visual(case["in_features"], attention={rows: seen, rows.queries: seen})
    kept = fed(stage.policy.select(tokens, stage.keep))
    return {"out_keep": kept, "out_padded": (kept < 0).sum(1)}
