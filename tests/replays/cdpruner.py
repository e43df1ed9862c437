"""CDPruner, whose released code takes extremes over the batch."""

from __future__ import annotations

from typing import Any

from replays.common import Case, visual

from prunekit.policies.cdpruner import CDPruner


def replay(case: Case) -> dict[str, Any]:
    (stage,) = CDPruner(case.params["keep"], relevance="clip", variant="released").stages(32)
    side = {name: case[f"in_{name}"] for name in ("image_embeds", "text_embeds")}
    tokens, policy = visual(case["in_features"], side=side), stage.policy
    order = policy.order(tokens, stage.keep)  # type: ignore[attr-defined]
    return {"out_order": order, "out_keep": policy.select(tokens, stage.keep).kept}
