"""The parts of an evaluation, each against a plain reference."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunekit import budget
from prunekit.errors import DataError, OutputError
from prunekit.evaluation import Sample, Scenes, Task, formats
from prunekit.evaluation.cells import Cell
from prunekit.evaluation.output import dated_folder
from prunekit.evaluation.predictions import Prediction, PredictionFile
from prunekit.evaluation.result import average_tokens
from prunekit.evaluation.runner import remaining, spread
from prunekit.evaluation.statistics import Resampler
from prunekit.policies import STAR, FasterVLM, FastV


class Exact(Task):
    def __len__(self) -> int:
        return 0

    def __getitem__(self, index: int) -> Sample:
        raise IndexError(index)


LINE = Prediction("A", 0.5, 0, "s0", "g0", "count", "how many ?", "2", "2", True, 144, {"input": 72})


def test_intervals_resample_groups() -> None:
    """Against a plain loop that draws groups and looks at all their samples."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    correct = rng.random(len(groups)) < rng.random(40)[groups]
    means = []
    for _ in range(4000):
        drawn = rng.integers(0, 40, 40)
        means.append(np.concatenate([correct[groups == g] for g in drawn]).mean())
    low, high = np.quantile(means, [0.025, 0.975])
    found = Resampler([f"g{g}" for g in groups], resamples=4000).interval(correct)
    assert found == (pytest.approx(low, abs=0.01), pytest.approx(high, abs=0.01))


def test_intervals_are_wider_for_questions_that_go_together() -> None:
    correct = np.repeat(np.arange(50) % 2 == 0, 8)
    together = Resampler(list(np.repeat(np.arange(50), 8).astype(str))).interval(correct)
    alone = Resampler(list(np.arange(400).astype(str))).interval(correct)
    assert together[1] - together[0] > 2 * (alone[1] - alone[0])


def test_comparison_is_paired() -> None:
    rng = np.random.default_rng(1)
    groups = list(np.repeat(np.arange(100), 8).astype(str))
    dense = rng.random(800) < 0.7
    method = dense.copy()
    method[:16] = ~method[:16]
    resampler = Resampler(groups)
    versus = resampler.compare(method, dense)
    assert versus.lost == int(dense[:16].sum())
    assert versus.gained == 16 - versus.lost
    assert versus.difference == pytest.approx(method.mean() - dense.mean())
    own = resampler.interval(method)
    assert versus.interval[1] - versus.interval[0] < 0.7 * (own[1] - own[0])
    assert resampler.compare(dense, dense).interval == (0, 0)


def test_intervals_of_a_subset() -> None:
    groups, correct = list("aabbcc"), np.array([True, False] * 3)
    resampler = Resampler(groups)
    assert resampler.interval(correct, np.array([True, False] * 3)) == (1, 1)
    assert resampler.interval(correct, np.array([True] + [False] * 5)) == (1, 1)  # groups without the subset drop out
    assert resampler.interval(correct) == Resampler(groups).interval(correct)


@given(st.sampled_from([STAR, FastV, FasterVLM]), st.integers(4, 144), st.integers(2, 32))
@settings(max_examples=60, deadline=None)
def test_traced_average_is_the_planned_one(method, tokens, depth) -> None:  # type: ignore[no-untyped-def]
    stages = method(keep=tokens).stages(depth) if method is not FastV else FastV(tokens, layer=1).stages(depth)
    kept = {stage.site: stage.keep.count(144) for stage in stages}
    assert average_tokens(kept, 144, depth) == pytest.approx(budget.average_tokens(stages, 144, depth))


def test_predictions_survive(tmp_path: Path) -> None:
    first, second = PredictionFile(tmp_path), PredictionFile(tmp_path, rank=1)
    lines = [replace(LINE, index=i, sample=f"s{i}") for i in range(6)]
    first.append([lines[4], lines[0]])
    second.append([lines[3], lines[0], lines[1]])  # two processes may answer one sample
    with second.path.open("a") as torn:
        torn.write(json.dumps({"method": "A"})[:-3])
    assert {p.index for p in first.read()} == {0, 1, 3, 4}
    first.heal()
    second.append([lines[2]])
    first.merge(lambda p: (0, p.index))
    assert [p.path.name for p in (first,)] == [path.name for path in tmp_path.iterdir()]
    assert first.read() == lines[:5]


def test_a_line_of_another_kind(tmp_path: Path) -> None:
    file = PredictionFile(tmp_path)
    file.path.write_text('{"method": "A"}\n')
    with pytest.raises(OutputError, match=r"line 1 is no prediction \('"):
        file.read()


def test_remaining_jobs() -> None:
    cells = [Cell("dense", None, ()), Cell("A", 0.5, None, "out of reach"), Cell("B", 0.5, ())]
    assert remaining(cells, 5, 2, []) == [(0, (0, 1)), (2, (0, 1)), (0, (2, 3)), (2, (2, 3)), (0, (4,)), (2, (4,))]
    done = [replace(LINE, method="dense", budget=None, index=i) for i in (0, 1, 2)]
    done += [replace(LINE, method="B", index=4)]
    assert remaining(cells, 5, 2, done) == [(2, (0, 1)), (0, (3,)), (2, (2, 3)), (0, (4,))]


def test_spread_samples() -> None:
    assert len(spread(1000, 4)) == 4
    assert len({number % 8 for number in spread(1000, 4)}) == 4
    assert spread(2, 4) == [0, 1]
    assert spread(10, 0) == []


def test_scenes_task() -> None:
    task = Scenes(scenes=3)
    assert len(task) == 24
    assert len({task[i].id for i in range(24)}) == 24
    assert [task[i].group for i in (0, 7, 8)] == ["test-0-0", "test-0-0", "test-0-1"]
    sample = task[9]
    assert sample.prompt == f"USER: <image> {sample.question} ASSISTANT:"
    assert sample.images[0].size == (96, 96)
    assert Scenes(scenes=50)[9].images[0].tobytes() == sample.images[0].tobytes()
    assert Scenes(scenes=3, seed=1)[9].images[0].tobytes() != sample.images[0].tobytes()
    assert Scenes(scenes=3, split="development")[9].images[0].tobytes() != sample.images[0].tobytes()
    with pytest.raises(IndexError):
        task[24]
    with pytest.raises(DataError, match="seed must be at least 0"):
        Scenes(seed=-1)


def test_prompts() -> None:
    """Prompts as they have been since version 1: a change needs a new version."""
    assert Scenes.version == 1
    assert [Scenes(scenes=1)[i].prompt for i in range(3)] == [
        "USER: <image> what color is the digit 8 ? ASSISTANT:",
        "USER: <image> what digit has the color yellow ? ASSISTANT:",
        "USER: <image> what shape has the color green ? ASSISTANT:",
    ]


def test_answers_are_compared_without_case_and_space() -> None:
    assert Exact().correct(" Red ", "red")
    assert not Exact().correct("red red", "red")


def test_the_first_word_is_the_answer_to_a_scene() -> None:
    assert Scenes().correct("red red", "red")
    assert not Scenes().correct("", "red")
    assert not Scenes().correct("blue red", "red")


def test_formats() -> None:
    assert formats.points(-0.0123) == "\N{MINUS SIGN}1.2"
    assert formats.interval((-0.01, 0.02), signed=True) == "[\N{MINUS SIGN}1.0, +2.0]"
    assert [formats.millions(x) for x in (None, 12, 3_450_000, 7_610_000_000)] == ["", "12", "3.45 M", "7.61 G"]
    assert [formats.budget_label(x) for x in (None, 0.15, 36)] == ["", "15 %", "36 tokens"]
    looks = formats.styles([f"m{i}" for i in range(24)])
    assert len(set(looks.values())) == 24
    assert formats.spaced([1, 1.01, 10, 100], count=4) == [100, 10, 1.01]
    assert formats.spaced([], count=4) == []


def test_dated_folders_are_new(tmp_path: Path) -> None:
    first = dated_folder("a", tmp_path)
    first.mkdir()
    assert not dated_folder("a", tmp_path).exists()
