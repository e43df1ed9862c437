"""One vocabulary of budgets for all methods.

A one-stage method before the language model spends its budget in every layer; FastV runs its first layers on all
tokens; STAR has two levels. Compared at the same count after the last stage they would be given different amounts of
compute. A `Budget` says by what they are compared, and finds each method's own setting for it.
"""

from __future__ import annotations

from prunekit.budget.cost import CostModel, Latency, LatencyTable
from prunekit.budget.levels import average_tokens, tokens_per_layer
from prunekit.budget.measures import achieved
from prunekit.budget.vocabulary import Budget, Solved, match_average

__all__ = [
    "Budget",
    "CostModel",
    "Latency",
    "LatencyTable",
    "Solved",
    "achieved",
    "average_tokens",
    "match_average",
    "tokens_per_layer",
]
