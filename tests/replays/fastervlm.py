"""FasterVLM."""

from __future__ import annotations

from typing import Any

from replays.common import Case, visual

from prunekit import Keep
from prunekit.policies import FasterVLM


def replay(case: Case) -> dict[str, Any]:
    (stage,) = FasterVLM(keep=case.params["keep"]).stages(32)
    seen = case["in_cls_attn"].mean(1)
    (rows,) = stage.policy.needs.attention
    tokens = visual(seen[..., None], attention={rows: seen, rows.queries: seen})
    return {"out_keep": stage.policy.select(tokens, Keep(tokens=case.params["keep"])).kept}
