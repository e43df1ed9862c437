"""Experiments whose budgets are given by any measure."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from experiments import refused, result, write

from prunekit import Budget, policies
from prunekit.evaluation import Experiment, Result, Scenes, load_experiment, run
from prunekit.evaluation.cells import amount_label
from prunekit.evaluation.experiment import resolved

METHODS = {"Random": "Random", "FastV": {"class_path": "FastV", "init_args": {"layer": 1}}, "VTW": "VTW"}
BUDGETS = [{"flops": 0.5}, {"kv": 0.4}, {"tokens": 20}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with several measures."""
    home = tmp_path_factory.mktemp("budgets")
    task = {"class_path": "Scenes", "init_args": {"scenes": 1}}
    file = write(home / "a.yaml", task=task, methods=METHODS, budgets=BUDGETS, unreachable="skip")
    run(load_experiment(file), home / "out")
    return home / "out"


def test_rows_by_several_measures(folder: Path) -> None:
    found = {(row["name"], row["budget"]): row for row in result(folder)["methods"]}
    budgets = ("flops=0.5", "kv=0.4", "tokens=20")
    assert set(found) == {("dense", None), *((name, budget) for name in METHODS for budget in budgets)}
    assert found["dense", None]["achieved"]["flops"] == 1
    assert 0.48 < found["Random", "flops=0.5"]["achieved"]["flops"] <= 0.5
    assert 0.38 < found["FastV", "kv=0.4"]["achieved"]["kv"] <= 0.4
    assert found["FastV", "tokens=20"]["final_visual_tokens"] == 20
    assert found["VTW", "tokens=20"]["accuracy"] is None
    for (name, budget), row in found.items():
        if row["accuracy"] is not None and name != "dense":
            assert row["achieved"]["average"] == pytest.approx(row["average_visual_tokens"]), (name, budget)


def test_results_are_found_by_their_budgets(folder: Path) -> None:
    read = Result.read(folder / "result.json")
    assert read["Random", Budget(flops=0.5)] is read["Random", "flops=0.5"]
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert all(label in report for label in ("50 % of FLOPs", "40 % of KV", "20 at the end"))


def test_the_resolved_experiment_says_the_same(folder: Path) -> None:
    again = load_experiment(folder / "config.yaml")
    assert again.budgets == [Budget(flops=0.5), Budget(kv=0.4), Budget(tokens=20)]
    assert resolved(again)["budgets"] == BUDGETS


@pytest.mark.parametrize(
    ("amount", "label"),
    [
        (None, ""),
        (0.15, "15 %"),
        (36, "36 tokens"),
        ("average=0.25", "25 %"),
        ("flops=0.3", "30 % of FLOPs"),
        ("kv=1000000", "1,000,000 bytes of KV"),
        ("kv=0.2", "20 % of KV"),
        ("ratio=0.1", "10 % at the end"),
        ("tokens=64", "64 at the end"),
    ],
)
def test_labels(amount: Any, label: str) -> None:
    assert amount_label(amount) == label


BAD: dict[str, tuple[list[Any], str]] = {
    "a misspelt measure": ([{"flop": 0.3}], r"budgets\[0\].flop: not accepted; allowed are .*Did you mean 'flops'"),
    "two measures": ([{"flops": 0.3, "kv": 0.2}], r"budgets\[0\].*exactly one of"),
    "above dense": ([{"flops": 1.5}], r"budgets\[0\].*1.5 is above 1"),
    "a number in words": ([{"flops": "much"}], r"budgets\[0\].flops: expected a number, given 'much'"),
    "twice": ([0.25, {"average": 0.25}], r"budgets\[1\]: average=0.25 is listed twice"),
    "time": ([{"latency": 0.5}], r"budgets\[0\]: an experiment has no measured times"),
    "more tokens than there are": ([{"tokens": 200}], "methods.Random at budget tokens=200: .*has only 144"),
    "out of reach": ([{"flops": 0.01}], "methods.Random at budget flops=0.01: this list of stages cannot reach 0.01"),
}


@pytest.mark.parametrize(("budgets", "message"), BAD.values(), ids=BAD)
def test_bad_budgets(budgets: list[Any], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "run", write(tmp_path / "a.yaml", budgets=budgets), "--output", tmp_path / "out")
    assert re.search(message, said), said


def test_budgets_on_the_command_line(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path / "a.yaml"), ["--budgets", "[{kv: 0.3}, 36]"])
    assert experiment.budgets == [Budget(kv=0.3), 36]


def test_from_python() -> None:
    experiment = Experiment(methods={"Random": policies.Random()}, task=Scenes(scenes=1), budgets=[Budget(flops=0.5)])
    assert resolved(experiment)["budgets"] == [{"flops": 0.5}]
