"""prunekit: training-free visual token pruning of large vision-language models, as composable stages.

```python
from prunekit import prune
from prunekit.policies import STAR

with prune(model, STAR(keep=0.25)) as session:
    model.generate(**inputs)
```
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

from prunekit.adapter import ModelAdapter, register_adapter
from prunekit.budget import Budget
from prunekit.keep import Keep
from prunekit.needs import Keys, Needs, Rows, States
from prunekit.plan import Method, Plan, Stage
from prunekit.policy import PruningPolicy, ScoringPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.session import Session, prune
from prunekit.tokens import VisualTokens
from prunekit.trace import TraceRecord

if TYPE_CHECKING:
    from prunekit.costs import cost

try:
    __version__ = version("prunekit")
except PackageNotFoundError:  # a source tree that was not installed
    __version__ = "0+unknown"

__all__ = [
    "Budget",
    "Keep",
    "Keys",
    "Method",
    "ModelAdapter",
    "Needs",
    "Plan",
    "PruningPolicy",
    "Reference",
    "Rows",
    "ScoringPolicy",
    "Selection",
    "Session",
    "Stage",
    "States",
    "TraceRecord",
    "VisualTokens",
    "__version__",
    "cost",
    "prune",
    "register_adapter",
]


def __getattr__(name: str) -> Any:
    """Import `cost` when it is asked for: a program that prunes needs no tracer."""
    if name == "cost":
        from prunekit.costs import cost

        return cost
    raise AttributeError(f"module 'prunekit' has no attribute {name!r}")
