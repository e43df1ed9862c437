"""Optimisers and their schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


class Optimizer:
    """Muon for the matrices of the layers and AdamW for all else, with warm-up and a cosine over `steps`."""

    def __init__(
        self,
        modules: Iterable[nn.Module],
        layers: nn.Module,
        *,
        steps: int,
        muon: float,
        adamw: float,
        warmup: float,
        clip: float,
    ) -> None:
        matrices = [p for p in layers.parameters() if p.ndim == 2]
        chosen = {id(p) for p in matrices}
        others = [p for m in modules for p in m.parameters() if id(p) not in chosen]
        self._parameters = matrices + others
        self._optimizers: tuple[tuple[torch.optim.Optimizer, float], ...] = (
            (
                torch.optim.Muon(matrices, lr=muon, momentum=0.95, weight_decay=0.02, adjust_lr_fn="match_rms_adamw"),
                muon,
            ),
            (torch.optim.AdamW(others, lr=adamw, betas=(0.9, 0.98), weight_decay=0.0), adamw),
        )
        self._steps, self._warmup, self._clip = steps, warmup, clip
        self._done = 0

    def step(self, loss: torch.Tensor) -> None:
        """Backward pass, clipped update, learning rates moved on."""
        progress = self._done / self._steps
        rate = min(1.0, (self._done + 1) / (self._warmup * self._steps + 1))
        rate *= 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * progress))
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters, self._clip)
        for optimizer, base in self._optimizers:
            for group in optimizer.param_groups:
                group["lr"] = base * rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._done += 1
