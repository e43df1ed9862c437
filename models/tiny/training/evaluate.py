"""What the model card reports: accuracies with intervals, blind controls, and random subsets of tokens."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from prunekit.models.tiny.training.data import Pool, scene_pool
from prunekit.models.tiny.training.export import load
from prunekit.models.tiny.training.language import Drop, Features, features, packed_correct, random_subset
from prunekit.models.tiny.training.network import ATTENTION, VISUAL_TOKENS, build
from prunekit.models.tiny.training.recipe import Recipe
from prunekit.models.tiny.training.run import restore
from prunekit.models.tiny.training.words import prompt
from prunekit.scenes import FAMILIES, Question, Scene, scene

Correct = NDArray[np.bool_]
SHARES = (1.0, 0.5, 0.25, 0.11, 0.05)
OBJECT_SHARES = (0.25, 0.11)
RESAMPLES = 2_000


def interval(correct: Correct) -> dict[str, float]:
    """Accuracy in percent with a 95 % bootstrap interval over scenes, all questions of a scene together."""
    per_scene = correct.reshape(len(correct), -1).mean(1) * 100
    rng = np.random.default_rng(0)
    means = per_scene[rng.integers(0, len(per_scene), (RESAMPLES, len(per_scene)))].mean(1)
    low, high = np.percentile(means, (2.5, 97.5))
    return {
        "mean": round(float(per_scene.mean()), 1),
        "low": round(float(low), 1),
        "high": round(float(high), 1),
    }


def table(correct: Correct) -> dict[str, dict[str, float]]:
    """All families together, then each."""
    families = {family: interval(correct[:, f : f + 1]) for f, family in enumerate(FAMILIES)}
    return {"all": interval(correct), **families}


@torch.no_grad()
def generated(folder: Path, scenes: Sequence[Scene]) -> Correct:
    """The exported model through its own processor and `generate`: right means the answer, then the end."""
    model, processor = load(folder)
    rows = []
    for start in range(0, len(scenes), 4):
        asked: list[tuple[Image.Image, Question]] = [
            (shown.pil(), question) for shown in scenes[start : start + 4] for question in shown.questions
        ]
        inputs = processor(
            images=[image for image, _ in asked],
            text=[prompt(question.text) for _, question in asked],
            return_tensors="pt",
            padding=True,
        )
        new = model.generate(**inputs)[:, inputs["input_ids"].shape[1] :]
        texts = processor.batch_decode(new, skip_special_tokens=True)
        ended = (new == processor.tokenizer.eos_token_id).any(1).tolist()
        rows += [t == q.answer and e for t, e, (_, q) in zip(texts, ended, asked, strict=True)]
    return np.array(rows, bool).reshape(len(scenes), len(FAMILIES))


def test_scenes(recipe: Recipe) -> list[Scene]:
    """The scenes that nothing but the final tables ever looked at."""
    return [scene(i, split="test", seed=recipe.data_seed + 2) for i in range(recipe.test_scenes)]


def select_pool(recipe: Recipe) -> Pool:
    """The development scenes that decide which seed is shipped."""
    return scene_pool(recipe.select_scenes, "development", recipe.data_seed + 3)


def test_pool(recipe: Recipe) -> Pool:
    """The test scenes as arrays."""
    return scene_pool(recipe.test_scenes, "test", recipe.data_seed + 2)


def packed(folder: Path, pool: Pool) -> Correct:
    """The exported model in single precision with packed questions: faster, and the same but for rounding."""
    model, _ = load(folder)
    model.set_attn_implementation(ATTENTION)
    return packed_correct(model, features(model, pool, exact=True), exact=True)


def prior_correct(train: Pool, pool: Pool) -> Correct:
    """The best that can be known without a model: the most frequent training answer to the same words."""
    seen: dict[bytes, Counter[int]] = defaultdict(Counter)
    flat = train.questions.reshape(-1, train.questions.shape[-1])
    for words, answer in zip(flat, train.answers.ravel().tolist(), strict=True):
        seen[words.tobytes()][answer] += 1
    best = {words: counts.most_common(1)[0][0] for words, counts in seen.items()}
    asked, answers = pool.questions[:, 0], pool.answers[:, 0]
    guesses = [[best.get(words.tobytes(), -1) for words in row] for row in asked]
    return np.asarray(np.array(guesses) == answers)


def blind(folder: Path, train: Pool, pool: Pool) -> dict[str, Any]:
    """A gray image, the image of another scene, and the prior of the questions."""
    gray = replace(pool, images=np.full_like(pool.images, 128))
    shifted = replace(pool, images=np.roll(pool.images, 1, axis=0))
    return {
        "gray_image": table(packed(folder, gray)),
        "other_image": table(packed(folder, shifted)),
        "prior": table(prior_correct(train, pool)),
    }


def subsets(checkpoints: Path, pool: Pool) -> tuple[dict[str, Any], Correct]:
    """Test accuracy from random subsets at the input, with token dropout and in the control without.

    All see the same subsets.  Float32, tokens really removed, positions kept.  The second result tells which
    questions the network with dropout answers from all tokens.
    """
    results: dict[str, Any] = {}
    for stage in ("language", "dropout", "control"):
        model = _restored(checkpoints, stage)
        data = features(model, pool, exact=True)
        correct = {share: _at_share(model, data, share) for share in SHARES}
        results[stage] = {f"{share:g}": interval(c) for share, c in correct.items()}
        if stage == "dropout":
            full = correct[1.0]
    return results, full


def objects_first(checkpoints: Path, pool: Pool) -> dict[str, Any]:
    """What an oracle would keep that knows all objects: their patches, filled up or cut at random."""
    results: dict[str, Any] = {}
    for stage in ("control", "dropout"):
        model = _restored(checkpoints, stage)
        data = features(model, pool, exact=True)
        results[stage] = {}
        for share in OBJECT_SHARES:
            score = np.random.default_rng([8, int(share * 100)]).random(pool.owner.shape) + (pool.owner > 0)
            keep = np.sort(np.argsort(-score, 1)[:, : round(share * VISUAL_TOKENS)], 1)
            correct = packed_correct(model, data, Drop(torch.from_numpy(keep), 0), exact=True)
            results[stage][f"{share:g}"] = table(correct)
    return results


def _restored(checkpoints: Path, stage: str) -> Any:
    model = build(0)
    restore(checkpoints, stage, model)
    model.eval().set_attn_implementation(ATTENTION)
    return model


def _at_share(model: Any, data: Features, share: float) -> Correct:
    keep = random_subset(np.random.default_rng([7, int(share * 100)]), len(data.pool), round(share * VISUAL_TOKENS))
    drop = None if share == 1.0 else Drop(keep, 0)
    return packed_correct(model, data, drop, exact=True)
