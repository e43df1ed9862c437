"""What tests of the latency protocol share: a clock that counts, a small model, and one measurement of it."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch

from prunekit import Keep, Stage
from prunekit.latency import Benchmark, Protocol, Timer, measure
from prunekit.models import tiny
from prunekit.policies import STAR, CrossAttention

CPU = torch.device("cpu")
QUICK = Protocol(batch=(1, 2), decode_tokens=2, repeats=2)


class Counting(Timer):
    """A clock that goes on by one second whenever it is looked at, and checks that it is waited for."""

    name = "counting"

    def __init__(self) -> None:
        self.now = self.waited = 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def wait(self) -> None:
        self.waited = self.now

    def seconds(self, start: int, end: int) -> float:
        assert end <= self.waited, "moments are compared before the device has come to them"
        return float(end - start)


@cache
def model_and_inputs() -> tuple[Any, dict[str, torch.Tensor]]:
    model, make_inputs = tiny.tiny_random("llava")
    return model, dict(make_inputs())


@cache
def measured() -> Benchmark:
    model, inputs = model_and_inputs()
    methods = {"STAR": STAR(keep=0.25), "stage": Stage("decoder.2", CrossAttention("last"), Keep(tokens=4))}
    return measure(model, inputs, methods, QUICK)
