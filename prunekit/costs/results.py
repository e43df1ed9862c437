"""What `prunekit.cost` answers with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prunekit.costs.parts import Cost

__all__ = ["Costs", "MethodCost"]

CONVENTION = {
    "unit": "one multiply-add is one MAC, and two FLOPs",
    "attention": "full: queries times keys, whatever a mask hides",
    "biases": "not counted",
    "prefill": "the whole batch; one position through the output head",
}


@dataclass(frozen=True)
class MethodCost:
    """What one method costs on one prompt.

    Attributes:
        name: of the method; `dense` for the model as it is.
        budget: what it was matched to: visual tokens per decoder layer as a share or a number, or a text such as
            `flops=0.3`; None: as configured.
        stages: `site`, `policy` and `keep` of each.
        cost: multiply-adds of the prefill, and under `decode` those of the tokens after it.
        kv_lengths: keys in each decoder layer's cache after the prefill.
        kv_bytes: of all keys and values after the prefill.
        kv_bytes_at_end: after the last generated token.
        activation_bytes: an estimate of what the widest decoder layer of the prefill holds besides: the larger of its
            MLP's and its attention's states, see the documentation. KV cache, weights and vision encoder apart.
        published: what a paper with the convention that was asked for would print: `total`, `dense`, `share`; or None.
    """

    name: str
    budget: int | float | str | None
    stages: tuple[dict[str, str], ...]
    cost: Cost
    kv_lengths: tuple[int, ...]
    kv_bytes: int
    kv_bytes_at_end: int
    activation_bytes: int
    published: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        lists = {"stages": list(self.stages), "kv_lengths": list(self.kv_lengths)}
        sizes = {"kv_bytes": self.kv_bytes, "kv_bytes_at_end": self.kv_bytes_at_end}
        sizes |= {"activation_bytes": self.activation_bytes}
        published = {} if self.published is None else {"published": self.published}
        return {"name": self.name, "budget": self.budget, **self.cost.to_dict(), **sizes, **lists, **published}


@dataclass(frozen=True)
class Costs:
    """What methods cost on a model.

    Attributes:
        model: as it was given.
        parameters: of the model.
        prompt: the numbers that were asked for, and what followed from them.
        dense: the model without pruning.
        pruned: the methods, in order.
        skipped: with `unreachable="skip"`, `name`, `budget` and `reason` of what has no count.
    """

    model: str
    parameters: int
    prompt: dict[str, Any]
    dense: MethodCost
    pruned: tuple[MethodCost, ...]
    skipped: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All numbers, for JSON: `pruned` is one object for one method, and a list for several."""
        found = [each.to_dict() for each in self.pruned]
        pruned = {} if not found else {"pruned": found[0] if len(found) == 1 else found}
        head = {"model": self.model, "parameters": self.parameters, "prompt": self.prompt, "convention": CONVENTION}
        skipped = {"skipped": list(self.skipped)} if self.skipped else {}
        return {**head, "dense": self.dense.to_dict(), **pruned, **skipped}
