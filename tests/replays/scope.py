"""SCOPE; its code divides the budget by the rows of the batch."""

from __future__ import annotations

from typing import Any

from replays.common import Case, visual

from prunekit.policies.scope import SCOPE


def replay(case: Case) -> dict[str, Any]:
    features = case["in_features"]
    method = SCOPE(keep=case.params["num_token_total"] // len(features), alpha=case.params["alpha"])
    (stage,) = method.stages(32)
    policy: Any = stage.policy
    (rows,), (states,) = policy.needs.attention, policy.needs.states
    seen = case["in_cls_attn"].mean(1)
    tokens = visual(features, attention={rows: seen, rows.queries: seen}, states={states: features})
    return {"out_order": policy.order(tokens, stage.keep), "out_keep": policy.select(tokens, stage.keep).kept}
