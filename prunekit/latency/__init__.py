"""Latency, memory and a roofline of methods, always beside the dense model under the same attention.

```python
from prunekit.latency import Request, bench

found = bench(Request(model="tiny", methods=("STAR",)))
print(found.speedup(found.rows[-1]))
```
"""

from __future__ import annotations

from prunekit.latency.measure import measure
from prunekit.latency.protocol import Protocol
from prunekit.latency.request import Request, bench
from prunekit.latency.result import Benchmark, Ratio, Row, Skipped
from prunekit.latency.roofline import Bound, Peaks
from prunekit.latency.timer import CudaTimer, Timer, WallTimer

__all__ = [
    "Benchmark",
    "Bound",
    "CudaTimer",
    "Peaks",
    "Protocol",
    "Ratio",
    "Request",
    "Row",
    "Skipped",
    "Timer",
    "WallTimer",
    "bench",
    "measure",
]
