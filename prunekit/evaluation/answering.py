"""One batch through a model with or without a session: answers and what was kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor

from prunekit.plan import Stage
from prunekit.session import Session, prune
from prunekit.trace import TraceRecord

__all__ = ["Positions", "answer", "session_of", "to_device"]

Positions = Literal["original", "compact"]


def to_device(inputs: Mapping[str, Tensor], device: Any, dtype: torch.dtype) -> dict[str, Tensor]:
    """Inputs where and as the model needs them: pixels get the model's type, ids stay integers."""
    moved = {name: value.to(device) for name, value in inputs.items()}
    return {name: value.to(dtype) if value.is_floating_point() else value for name, value in moved.items()}


@contextmanager
def session_of(model: Any, stages: Sequence[Stage], positions: Positions) -> Iterator[Session | None]:
    """A session with these stages, or nothing at all for the dense model."""
    if not stages:
        yield None
        return
    with prune(model, *stages, positions=positions) as session:
        yield session


@torch.inference_mode()
def answer(
    model: Any, processor: Any, inputs: Mapping[str, Tensor], stages: Sequence[Stage], positions: Positions, length: int
) -> tuple[list[str], list[TraceRecord]]:
    """Greedy answers to a batch, through `model.generate`, and the stages' records.

    Args:
        model: the model.
        processor: its processor.
        inputs: the batch, on the model's device, padded at the left.
        stages: what is pruned; none for the dense model.
        positions: position ids of the kept tokens.
        length: most tokens of an answer.
    """
    with session_of(model, stages, positions) as session:
        tokens = model.generate(**inputs, max_new_tokens=length, do_sample=False)
    texts = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts], session.trace if session else []
