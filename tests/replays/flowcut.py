"""FlowCut, layer after layer, on the tokens that its own cuts left."""

from __future__ import annotations

from typing import Any

import torch
from replays.common import Case, visual

from prunekit.needs import States
from prunekit.plan import Shape
from prunekit.policies.flowcut import FlowCut


def replay(case: Case) -> dict[str, Any]:
    layers, target = case.params["layers"], case.params["target"]
    stages = FlowCut(target, variant="released").stages_of(Shape(32, layers, layers - 2))
    memory: dict[str, object] = {}
    batch, number = case["in_cls_attn_0"].shape[0], case["in_cls_attn_0"].shape[2]
    source = torch.arange(number).expand(batch, -1)
    answers: dict[str, Any] = {}
    counts = [number]
    for stage in stages:
        policy: Any = stage.policy
        attention, states = {}, {}
        for rows in policy.needs.attention:
            attention[rows] = case[f"in_cls_attn_{rows.layer}"].mean(1)
            values = case[f"in_value_{rows.layer}"]
            states |= {
                States("value", rows.layer): values[:, :, 1:],
                States("value", rows.layer, of="cls"): values[:, :, :1],
            }
        fields: dict[str, Any] = {"attention": attention, "states": states, "total": (number,) * batch}
        tokens = visual(torch.zeros(*source.shape, 1), source=source, memory=memory, **fields)
        before = dict(memory)
        for rows in policy.needs.attention[:-1]:  # layers without a cut
            answers[f"out_scores_{rows.layer}"] = policy.scores(tokens, rows.layer)
            counts.append(source.shape[1])
        memory.clear()
        memory.update(before)
        selection = policy.select(tokens, stage.keep)
        answers[f"out_scores_{policy.layer}"] = selection.scores.gather(1, selection.kept)
        source = source.gather(1, selection.kept)
        answers[f"out_keep_after_{policy.layer}"] = source
        counts.append(source.shape[1])
    return answers | {"out_keep": source, "out_counts": counts}
