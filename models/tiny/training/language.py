"""Stages 2 and 3: projector and language model learn to answer, first from all tokens, then from subsets.

The vision tower stays as stage 1 left it, so its features are computed once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from prunekit.models.tiny.training.data import Pool
from prunekit.models.tiny.training.network import VISUAL_TOKENS, answer, pixels, see
from prunekit.models.tiny.training.optimize import Optimizer
from prunekit.models.tiny.training.recipe import Recipe
from prunekit.models.tiny.training.run import Log
from prunekit.models.tiny.training.words import EOS, TOKEN
from prunekit.scenes import FAMILIES


@dataclass
class Features:
    """A pool with the features that the projector gets."""

    pool: Pool
    patches: Tensor


@torch.no_grad()
def features(model: Any, pool: Pool, *, exact: bool = False) -> Features:
    """Run the vision tower once; `exact` computes in float32, as the shipped model does."""
    parts = []
    for start in range(0, len(pool), 64):
        with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
            patches, _ = see(model, pixels(pool.images[start : start + 64]))
        parts.append(patches if exact else patches.bfloat16())
    return Features(pool, torch.cat(parts))


@dataclass(frozen=True)
class Drop:
    """Which visual tokens survive, and the decoder layer before which the others leave."""

    keep: Tensor
    layer: int


def random_subset(rng: np.random.Generator, images: int, keep: int) -> Tensor:
    """Sorted uniformly random subsets of the visual tokens: no score, no label, no position is preferred."""
    order = rng.random((images, VISUAL_TOKENS)).argsort(-1)[:, :keep]
    return torch.from_numpy(np.sort(order, -1))


def draw_drop(rng: np.random.Generator, images: int, layers: int, recipe: Recipe) -> Drop | None:
    """One keep share and one layer for a batch, a subset for every image; None if nothing is dropped."""
    if rng.random() >= recipe.drop_steps:
        return None
    share = math.exp(rng.uniform(math.log(recipe.least_share), 0.0))
    keep = max(1, round(share * VISUAL_TOKENS))
    layer = 0 if rng.random() < recipe.drop_at_input else int(rng.integers(1, layers))
    return Drop(random_subset(rng, images, keep), layer)


def answerable(pool: Pool, chosen: NDArray[Any], relevant: NDArray[Any], keep: Tensor) -> Tensor:
    """Which questions can still be answered: a patch of every object that they are about survives.

    This chooses questions to learn from, never tokens.
    """
    seen = np.take_along_axis(pool.owner[chosen], keep.numpy(), 1)
    bits = np.bitwise_or.reduce(np.where(seen > 0, 1 << (seen.astype(np.int64) - 1).clip(0), 0), 1)
    return torch.from_numpy((relevant & ~bits[:, None]) == 0)


def train_language(
    model: Any,
    seed: int,
    train: Features,
    monitor: Features,
    recipe: Recipe,
    log: Log,
    *,
    stage: int,
    steps: int,
    muon: float,
    drop: bool,
) -> dict[str, Any]:
    """The data of a stage depend on the seed and the stage alone, and not on whether tokens are dropped."""
    order_rng, drop_rng = np.random.default_rng([seed, stage]), np.random.default_rng([seed, stage, 1])
    decoder = model.model.language_model
    optimizer = Optimizer(
        (decoder, model.lm_head, model.model.multi_modal_projector),
        torch.nn.ModuleList([decoder.layers, model.model.multi_modal_projector]),
        steps=steps,
        muon=muon,
        adamw=muon * recipe.adamw_share,
        warmup=recipe.warmup,
        clip=1.0,
    )
    pool, size = train.pool, recipe.batch
    order = np.zeros(0, np.int64)
    losses: list[Tensor] = []
    for step in range(1, steps + 1):
        if len(order) < size:
            order = np.concatenate([order, order_rng.permutation(len(pool))])
        chosen, order = order[:size], order[size:]
        variant = order_rng.integers(0, pool.questions.shape[1], size)
        questions = torch.from_numpy(pool.questions[chosen, variant]).long()
        answers = torch.from_numpy(pool.answers[chosen, variant]).long()
        dropped = draw_drop(drop_rng, size, len(decoder.layers), recipe) if drop else None
        weight = torch.ones(answers.shape)
        with torch.autocast("cpu", torch.bfloat16):
            if dropped is None:
                logits = answer(model, train.patches[chosen], questions, answers)
            else:
                relevant = pool.relevant[chosen, variant]
                weight = answerable(pool, chosen, relevant, dropped.keep).float()
                logits = answer(model, train.patches[chosen], questions, answers, dropped.keep, dropped.layer)
        target = torch.stack([answers, torch.full_like(answers, TOKEN[EOS])], -1)
        each = F.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none").view(target.shape)
        loss = (each[..., 0] * weight).sum() / weight.sum().clamp(min=weight.numel() / 4) + 0.1 * each[..., 1].mean()
        optimizer.step(loss)
        if dropped is None:
            losses.append(each[..., 0].detach().mean(0))
        if step % recipe.report_every == 0 and losses:
            recent = torch.stack(losses[-recipe.report_every :]).mean(0)
            log(f"step {step} loss {recent.mean():.3f}: " + " ".join(f"{x:.2f}" for x in recent.tolist()))
        if step % recipe.evaluate_every == 0 or step == steps:
            log.point(step, **by_family(packed_correct(model, monitor)))
    return {"steps": steps, "batch": size, "drop": drop}


@torch.no_grad()
def packed_correct(model: Any, data: Features, drop: Drop | None = None, *, exact: bool = False) -> NDArray[Any]:
    """Which first questions (scenes, families) are answered correctly, from all tokens or from a subset."""
    results = []
    for start in range(0, len(data.pool), 64):
        part = slice(start, start + 64)
        questions = torch.from_numpy(data.pool.questions[part, 0]).long()
        answers = torch.from_numpy(data.pool.answers[part, 0]).long()
        with torch.autocast("cpu", torch.bfloat16, enabled=not exact):
            keep, layer = (None, 0) if drop is None else (drop.keep[part], drop.layer)
            logits = answer(model, data.patches[part], questions, answers, keep, layer)
        results.append((logits[:, :, 0].argmax(-1) == answers).numpy())
    return np.concatenate(results)


def by_family(correct: NDArray[Any]) -> dict[str, float]:
    """Mean accuracy, and that of every family."""
    means = {family: round(float(correct[:, f].mean()), 4) for f, family in enumerate(FAMILIES)}
    return {"accuracy": round(float(correct.mean()), 4), **means}
