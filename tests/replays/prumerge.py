"""PruMerge and PruMerge+, as released."""

from __future__ import annotations

from typing import Any

import torch
from replays.common import Case, visual

from prunekit.attention import attention_rows
from prunekit.policies.prumerge import PruMerge
from prunekit.selection import merged


def replay(case: Case) -> dict[str, Any]:
    params = case.params
    keep = None if params["adaptive"] else params["reduction_ratio"]
    (stage,) = PruMerge(keep, plus=params["plus"], variant="released").stages(32)
    keys, features = case["in_keys"][:, None], case["in_features"]
    first, patches = torch.zeros(len(features), 1, dtype=torch.long), torch.arange(1, keys.shape[2])
    seen = attention_rows(
        torch.nn.Identity(), case["in_q_cls"][:, None, None], keys, None,
        first, first == 0, patches.expand(len(features), -1), joined=True,
    )  # fmt: skip
    (rows,) = stage.policy.needs.attention
    tokens = visual(features, attention={rows: seen, rows.queries: seen}, keys=keys[:, :, 1:])
    selection = stage.policy.select(tokens, None)
    assert selection.mix is not None
    made = merged(features, selection)
    count = selection.kept.shape[1]
    everything = count == features.shape[1]
    if everything:  # columns for all tokens, and none for the sum of no others
        made = torch.cat([made, torch.zeros_like(made[:, :1])], 1)
    own = selection.mix if everything else selection.mix[:, :-1]
    kept = (own == 1).to(torch.uint8).argmax(-1)  # a token's own weight is 1, all others are below
    gone = torch.ones(features.shape[:2], dtype=torch.bool).scatter(1, kept, False)
    rest = (~gone).to(torch.uint8).argsort(dim=1, stable=True)[:, : features.shape[1] - kept.shape[1]]
    return {"out_tokens": made, "out_keep": kept, "out_rest": rest}
