"""ToMe, step after step, in the official order."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from replays.common import Case, visual

from prunekit import Keep
from prunekit.policies.bipartite_matching import BipartiteMatching
from prunekit.selection import merged


def replay(case: Case) -> dict[str, Any]:
    params, whole = case.params, case["in_tokens"]
    prefix = int(params["class_token"]) + int(params["distill_token"])
    memory: dict[str, object] = {}
    number = whole.shape[1] - prefix
    tokens = visual(whole[:, prefix:], memory=memory, prefix=prefix)
    policy, special = BipartiteMatching(), whole[:, :prefix]
    order = torch.arange(number).expand(len(whole), -1)  # official place to our slot
    source = torch.eye(whole.shape[1]).expand(len(whole), -1, -1)[:, prefix:]
    answers: dict[str, Any] = {}
    for step, wanted in enumerate(params["r"]):
        count = tokens.source.shape[1]
        left = count - min(wanted, (count + prefix - params["protected"]) // 2)
        keys = case[f"in_metric_{step}"][:, prefix:]
        ours = torch.zeros_like(keys).scatter(1, order[..., None].expand_as(keys), keys)
        tokens = replace(tokens, keys=ours[:, None], total=(number,) * len(whole), counts=(count,) * len(whole))
        selection = policy.select(tokens, Keep(tokens=left))
        assert selection.owner is not None
        assert selection.bias is not None
        hidden, size = merged(tokens.hidden, selection), selection.bias.exp()
        owner = selection.owner[..., None].expand(-1, -1, source.shape[2])
        source = source.new_zeros(len(whole), left, source.shape[2]).scatter_add(1, owner, source)
        order = policy.order(tokens, selection)
        index = order[..., None]
        answers |= {
            f"out_tokens_{step}": torch.cat([special, hidden.gather(1, index.expand_as(hidden))], 1),
            f"out_size_{step}": torch.nn.functional.pad(size.gather(1, order), (prefix, 0), value=1.0),
        }
        eye = torch.eye(prefix, source.shape[2]).expand(len(whole), -1, -1)
        answers[f"out_source_{step}"] = torch.cat([eye, source.gather(1, index.expand_as(source))], 1)
        numbers = tokens.source.gather(1, selection.kept)
        tokens = replace(tokens, hidden=hidden, source=numbers, valid=numbers >= 0, keys=None)
    return answers
