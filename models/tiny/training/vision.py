"""Stage 1: the vision tower learns, patch by patch, what it sees; its [CLS] token learns what is there.

The [CLS] token must name all (kind, colour) pairs, so that its attention means something: a tower trained
through the language model alone gets no gradient in its last layer.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from prunekit.models.tiny.training.data import COLOR_NAMES, KINDS, Pool
from prunekit.models.tiny.training.network import VISION_WIDTH, VISUAL_TOKENS, pixels, see
from prunekit.models.tiny.training.optimize import Optimizer
from prunekit.models.tiny.training.recipe import Recipe
from prunekit.models.tiny.training.run import Log
from prunekit.scenes import GRID

BACKGROUND_WEIGHT = 0.25


class Heads(nn.Module):
    """Linear read-outs of patches and of the [CLS] token, thrown away after the stage."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(VISION_WIDTH)
        self.kind = nn.Linear(VISION_WIDTH, 1 + len(KINDS))
        self.color = nn.Linear(VISION_WIDTH, 1 + len(COLOR_NAMES))
        self.row = nn.Linear(VISION_WIDTH, GRID)
        self.column = nn.Linear(VISION_WIDTH, GRID)
        self.pairs = nn.Linear(VISION_WIDTH, len(KINDS) * len(COLOR_NAMES))


def _labels(values: NDArray[Any]) -> Tensor:
    return torch.from_numpy(values).long().flatten()


def _weights(classes: int) -> Tensor:
    weights = torch.ones(classes)
    weights[0] = BACKGROUND_WEIGHT
    return weights


def _loss(model: Any, heads: Heads, pool: Pool, chosen: NDArray[Any], pair_weight: float) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        patches, summary = see(model, pixels(pool.images[chosen]))
        patches = heads.norm(patches)
        kind, color = heads.kind(patches), heads.color(patches)
        row, column, pairs = heads.row(patches), heads.column(patches), heads.pairs(summary)
    at = torch.arange(VISUAL_TOKENS).repeat(len(chosen))
    loss = F.cross_entropy(kind.float().flatten(0, 1), _labels(pool.kind[chosen]), _weights(kind.shape[-1]))
    loss = loss + F.cross_entropy(color.float().flatten(0, 1), _labels(pool.color[chosen]), _weights(color.shape[-1]))
    loss = loss + 0.1 * F.cross_entropy(row.float().flatten(0, 1), at // GRID)
    loss = loss + 0.1 * F.cross_entropy(column.float().flatten(0, 1), at % GRID)
    there = torch.from_numpy(pool.pairs[chosen]).float()
    return loss + pair_weight * F.binary_cross_entropy_with_logits(pairs.float(), there, pos_weight=torch.tensor(3.0))


@torch.no_grad()
def _evaluate(model: Any, heads: Heads, pool: Pool) -> dict[str, float]:
    """Accuracy on object patches, and the share of pairs among as many best guesses of the [CLS] token."""
    kind, color, recall = [], [], []
    for start in range(0, len(pool), 64):
        part = np.arange(start, min(start + 64, len(pool)))
        with torch.autocast("cpu", torch.bfloat16):
            patches, summary = see(model, pixels(pool.images[part]))
            patches = heads.norm(patches)
            kinds, colors, pairs = heads.kind(patches), heads.color(patches), heads.pairs(summary).float()
        truth = _labels(pool.kind[part])
        shown = truth > 0
        kind.append((kinds.argmax(-1).flatten() == truth)[shown].float())
        color.append((colors.argmax(-1).flatten() == _labels(pool.color[part]))[shown].float())
        for there, scores in zip(torch.from_numpy(pool.pairs[part]), pairs, strict=True):
            recall.append(there[scores.topk(int(there.sum())).indices].float().mean())
    return {
        "patch_kind": round(torch.cat(kind).mean().item(), 4),
        "patch_color": round(torch.cat(color).mean().item(), 4),
        "cls_recall": round(torch.stack(recall).mean().item(), 4),
    }


def train_vision(
    model: Any, seed: int, plain: Pool, crowded: Pool, monitor: Pool, recipe: Recipe, log: Log
) -> dict[str, Any]:
    """Mostly crowded scenes at first, mostly ordinary ones at the end."""
    torch.manual_seed(seed)
    heads = Heads()
    rng = np.random.default_rng([seed, 1])
    tower = model.model.vision_tower
    muon, steps = recipe.vision_muon, recipe.vision_steps
    optimizer = Optimizer(
        (tower, heads),
        tower.encoder,
        steps=steps,
        muon=muon,
        adamw=muon * recipe.adamw_share,
        warmup=recipe.warmup,
        clip=2.0,
    )
    losses = []
    for step in range(1, steps + 1):
        progress = (step - 1) / steps
        pool = crowded if rng.random() < (0.8 if progress < 0.7 else 0.25) else plain
        chosen = rng.integers(0, len(pool), recipe.batch)
        loss = _loss(model, heads, pool, chosen, 0.5 if progress < 0.4 else 2.0)
        optimizer.step(loss)
        losses.append(loss.item())
        if step % recipe.evaluate_every == 0 or step == steps:
            log.point(step, loss=round(float(np.mean(losses[-50:])), 3), **_evaluate(model, heads, monitor))
    return {"steps": steps, "batch": recipe.batch}
