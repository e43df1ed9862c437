"""What methods cost on a model: multiply-adds, KV cache and activations, from its configuration alone.

| modules | what they have |
| --- | --- |
| `counting`, `bench`, `results`, `command` | `prunekit.cost` and `prunekit flops`: what is asked for, and the answer |
| `requests`, `skeleton`, `prompt`, `pictures` | methods, model and inputs out of names and numbers |
| `trace_graph`, `repeats`, `known` | the tracer, on the meta device or on a model with weights |
| `parts`, `decoding` | multiply-adds by part, KV caches and decode steps |
| `products`, `closed_form_text`, `closed_form_vision`, `closed_form_projector` | the same from shapes, as formulas |

`prunekit.flops`, `prunekit.closed_form`, `prunekit.conventions` and `prunekit.presets` are built on them.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prunekit.costs.counting import cost
    from prunekit.costs.results import Costs, MethodCost

__all__ = ["Costs", "MethodCost", "cost"]


def __getattr__(name: str) -> Any:
    """Import what counts when it is asked for: the formulas alone, which budgets use, need no tracer."""
    if name == "cost":
        from prunekit.costs.counting import cost

        return cost
    if name in ("Costs", "MethodCost"):
        from prunekit.costs import results

        return getattr(results, name)
    raise AttributeError(f"module 'prunekit.costs' has no attribute {name!r}")
