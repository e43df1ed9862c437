"""VisionZip's released code, which counts and feeds [CLS]."""

from __future__ import annotations

from typing import Any

import torch
from replays.common import Case, visual

from prunekit.policies.visionzip import VisionZip
from prunekit.selection import merged


def replay(case: Case) -> dict[str, Any]:
    dominant, contextual = case.params["dominant"], case.params["contextual"]
    total = dominant + contextual
    (stage,) = VisionZip(total, contextual=contextual / total, variant="released").stages(32)
    (rows,), (states,) = stage.policy.needs.attention, stage.policy.needs.states
    hidden, seen = case["in_hidden"], case["in_cls_attn"].mean(1)
    tokens = visual(
        hidden[:, 1:],
        attention={rows: seen, rows.queries: seen},
        keys=case["in_keys"][:, :, 1:],
        states={states: hidden[:, :1]},
    )
    selection = stage.policy.select(tokens, stage.keep)
    assert selection.mix is not None
    fed = selection.mix.argmax(-1)[:, :dominant]  # one token each; the number after the last is [CLS]
    fed = fed.masked_fill(fed == seen.shape[1], -1)
    attention = torch.nn.functional.pad(seen, (0, 1), value=2.0)  # [CLS] comes first
    by_attention = attention.gather(1, fed.masked_fill(fed < 0, seen.shape[1])).argsort(dim=1, descending=True)
    return {
        "out_tokens": merged(tokens.hidden, selection),
        "out_dominant_keep": fed,
        "out_returned_indices": fed.gather(1, by_attention),
    }
