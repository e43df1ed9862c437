"""The protocol: warm up, then rounds in which every way takes its turn, in a random order."""

from __future__ import annotations

import gc
import random
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import MeasurementError
from prunekit.latency.timer import Timer
from prunekit.latency.ways import Way

__all__ = ["Protocol", "Rounds", "batched", "run_rounds"]


@dataclass(frozen=True)
class Protocol:
    """How often and on what is measured.

    Attributes:
        batch: numbers of samples, each measured on its own.
        decode_tokens: tokens decoded, one by one, and by `generate`.
        repeats: rounds that count.
        warmup: rounds before them that do not.
        seed: of the order within rounds, and of the bootstrap.

    Raises:
        MeasurementError: a number that measures nothing.
    """

    batch: tuple[int, ...] = (1,)
    decode_tokens: int = 16
    repeats: int = 10
    warmup: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (("decode_tokens", 1), ("repeats", 2), ("warmup", 1)):
            if getattr(self, name) < least:
                raise MeasurementError(f"{name}: must be at least {least}, given {getattr(self, name)}.")
        if not self.batch or min(self.batch) < 1 or len(set(self.batch)) < len(self.batch):
            raise MeasurementError(f"batch: give numbers of samples, each once and at least 1; given {self.batch}.")


@dataclass(frozen=True)
class Rounds:
    """What the rounds at one batch size gave.

    Attributes:
        seconds: for each way and part the seconds of every round, in the order of rounds.
        order: which way was measured when, for each round.
    """

    seconds: dict[str, dict[str, list[float]]]
    order: list[list[str]]


@torch.inference_mode()
def run_rounds(ways: Mapping[str, Way], inputs: Mapping[str, Tensor], protocol: Protocol, timer: Timer) -> Rounds:
    """Measure all ways on one batch, in turns: whatever else the machine does meets all of them alike."""
    names, shuffle = list(ways), random.Random(protocol.seed).shuffle
    found = Rounds({name: {} for name in names}, [])
    gc.collect()
    enabled = gc.isenabled()
    gc.disable()  # or a collection falls into someone's time
    try:
        for number in range(protocol.warmup + protocol.repeats):
            shuffle(names)
            for name in names:
                taken = ways[name].once(inputs, protocol.decode_tokens, timer)
                for part, seconds in taken.items() if number >= protocol.warmup else ():
                    found.seconds[name].setdefault(part, []).append(seconds)
            if number >= protocol.warmup:
                found.order.append(list(names))
            gc.collect()
    finally:
        if enabled:
            gc.enable()
    return found


def batched(inputs: Mapping[str, Tensor], batch: int) -> dict[str, Tensor]:
    """Inputs of one sample as a batch of equal ones; all of them have samples, images or patches along axis 0."""
    return {name: torch.cat([value] * batch) for name, value in inputs.items()}
