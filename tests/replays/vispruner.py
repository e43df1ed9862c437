"""VisPruner."""

from __future__ import annotations

from typing import Any

from replays.common import Case, visual

from prunekit.policies.vispruner import VisPruner


def replay(case: Case) -> dict[str, Any]:
    (stage,) = VisPruner(case.params["keep"], important=case.params["important_ratio"]).stages(32)
    (rows,), (states,) = stage.policy.needs.attention, stage.policy.needs.states
    features, seen = case["in_features"], case["in_cls_attn"].mean(1)
    tokens = visual(features, attention={rows: seen, rows.queries: seen}, states={states: features})
    return {"out_keep": stage.policy.select(tokens, stage.keep).kept}
