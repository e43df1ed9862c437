"""DivPrune."""

from __future__ import annotations

from typing import Any

from replays.common import Case, visual

from prunekit.policies.divprune import DivPrune


def replay(case: Case) -> dict[str, Any]:
    (stage,) = DivPrune(keep=case.params["ratio"], variant="released").stages(32)
    tokens = visual(case["in_features"][None])
    policy: Any = stage.policy
    return {"out_order": policy.order(tokens, None)[0], "out_keep": policy.select(tokens, None).kept[0]}
