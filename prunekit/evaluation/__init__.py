"""Experiments: a task, methods and budgets go in; accuracies with intervals, costs and pictures come out.

```python
from prunekit.evaluation import Experiment, Scenes, run
from prunekit.policies import STAR

result = run(Experiment(methods={"STAR": STAR()}, task=Scenes(scenes=10), budgets=[0.25]), "runs/first")
print(result["STAR", 0.25].accuracy)
```
"""

from __future__ import annotations

from pathlib import Path

from prunekit.evaluation.config import load_experiment
from prunekit.evaluation.experiment import Experiment, ModelSpec
from prunekit.evaluation.result import MethodResult, Result
from prunekit.evaluation.scenes import Scenes
from prunekit.evaluation.task import Sample, Task

__all__ = [
    "Experiment",
    "MethodResult",
    "ModelSpec",
    "Result",
    "Sample",
    "Scenes",
    "Task",
    "load_experiment",
    "run",
]


def run(experiment: Experiment, output: Path | str | None = None) -> Result:
    """Run an experiment, or what is left of it: see `prunekit.evaluation.runner.run`."""
    from prunekit.evaluation import runner  # Lightning and plotly take seconds to import

    return runner.run(experiment, output)
