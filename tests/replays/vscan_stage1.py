"""The first stage of VScan, as released."""

from __future__ import annotations

from typing import Any

from replays.common import Case, visual

from prunekit.plan import Shape
from prunekit.policies.vscan import VScan
from prunekit.selection import merged


def replay(case: Case) -> dict[str, Any]:
    method = VScan(visual_keep=case.params["keep"], variant="released")
    stage, _ = method.stages_of(Shape(32, 24, 22))
    shallow, deep = stage.policy.needs.attention
    seen = {shallow: case["in_cls_attn_shallow"].mean(1), deep: case["in_cls_attn_deep"].mean(1)}
    tokens = visual(case["in_features"], attention=seen, grid=(24, 24), per_image=576)
    policy: Any = stage.policy
    selection = policy.select(tokens, None)
    local = policy.local(tokens)
    found = (~local).long().argsort(dim=1, stable=True)[:, : int(local[0].sum())]
    return {"out_keep": selection.kept, "out_local": found, "out_tokens": merged(tokens.hidden, selection)}
