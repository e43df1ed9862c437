"""Whatever ends a run, what it has answered is kept, and the next one goes on from there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from experiments import SMALL, predictions, prunekit, refused, result, write

from prunekit.evaluation.bench import Bench

TASK = '''
import os, signal
from dataclasses import dataclass
from pathlib import Path
from prunekit.evaluation import Scenes

@dataclass(frozen=True)
class {name}(Scenes):
    """Scenes that send a signal when a sample is read for the first time."""

    at: int = 8
    number: int = 0
    marker: str = ""

    def __getitem__(self, index):
        if index == self.at and not Path(self.marker).exists():
            Path(self.marker).touch()
            os.kill(os.getpid(), self.number)
        return super().__getitem__(index)
'''


def stopping(home: Path, number: int) -> Path:
    """An experiment that is stopped by a signal while its third batch is read."""
    name = f"Stopping{number}"
    (home / f"{name.lower()}.py").write_text(TASK.format(name=name))
    arguments = {"scenes": 2, "number": int(number), "marker": str(home / "marker")}
    task = {"class_path": f"{name.lower()}.{name}", "init_args": arguments}
    return write(home / "stopping.yaml", task=task)


def whole(home: Path) -> list[tuple[str, str]]:
    assert prunekit("run", write(home / "whole.yaml"), "--output", home / "whole") == 0
    return [(line["method"], line["prediction"]) for line in predictions(home / "whole")]


def check_continued(home: Path) -> None:
    assert result(home / "out")["provenance"]["continued"]
    assert [(line["method"], line["prediction"]) for line in predictions(home / "out")] == whole(home)


@pytest.fixture
def attentive() -> Iterator[None]:
    """Ctrl-C works: shells start background jobs with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("attentive")
def test_control_c(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, handler = stopping(tmp_path, signal.SIGINT), signal.getsignal(signal.SIGINT)
    assert prunekit("run", file, "--output", tmp_path / "out") == 130
    said = capsys.readouterr().err
    assert f"Continue with: prunekit run {tmp_path / 'out' / 'config.yaml'} --output {tmp_path / 'out'}" in said
    assert "Traceback" not in said
    assert signal.getsignal(signal.SIGINT) is handler
    assert len(predictions(tmp_path / "out")) == 2 * 2 * 4  # two batches of four, dense and Random
    assert not (tmp_path / "out" / "result.json").exists()
    assert prunekit("run", tmp_path / "out" / "config.yaml", "--output", tmp_path / "out") == 0
    check_continued(tmp_path)


def test_kill(tmp_path: Path) -> None:
    file = stopping(tmp_path, signal.SIGKILL)
    command = [sys.executable, "-m", "prunekit", "run", str(file), "--output", str(tmp_path / "out")]
    ended = subprocess.run(command, env=os.environ, capture_output=True, timeout=300)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert len(predictions(tmp_path / "out")) == 16
    with (tmp_path / "out" / "predictions.jsonl").open("a") as torn:
        torn.write('{"method": "dense", "bud')
    assert prunekit("run", file, "--output", tmp_path / "out") == 0
    check_continued(tmp_path)


def test_answered_samples_are_not_answered_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "a.yaml")
    assert prunekit("run", file, "--output", tmp_path / "out") == 0
    kept = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    (tmp_path / "out" / "predictions.jsonl").write_text("\n".join(kept[:22]) + "\n")
    (tmp_path / "out" / "result.json").unlink()
    asked: list[int] = []
    original = Bench.answer

    def counted(self, inputs, stages):  # type: ignore[no-untyped-def]
        asked.append(len(inputs["input_ids"]))
        return original(self, inputs, stages)

    monkeypatch.setattr(Bench, "answer", counted)
    assert prunekit("run", file, "--output", tmp_path / "out") == 0
    assert sum(asked) == 10
    assert (tmp_path / "out" / "predictions.jsonl").read_text().splitlines() == kept


def test_a_policy_that_fails(tmp_path: Path) -> None:
    (tmp_path / "failing_policy.py").write_text(
        "from dataclasses import dataclass\nfrom prunekit import ScoringPolicy\n\n"
        "@dataclass(frozen=True)\nclass Failing(ScoringPolicy):\n"
        "    def score(self, tokens):\n        raise ZeroDivisionError('mine')\n"
    )
    file = write(tmp_path / "a.yaml", methods={"A": "Random", "B": "failing_policy.Failing"})
    with pytest.raises(ZeroDivisionError, match="mine"):  # a mistake in one's own code deserves its traceback
        prunekit("run", file, "--output", tmp_path / "out")
    assert {line["method"] for line in predictions(tmp_path / "out")} == {"dense", "A"}


def test_scores_that_rank_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "constant_policy.py").write_text(
        "from dataclasses import dataclass\nfrom prunekit import ScoringPolicy\n\n"
        "@dataclass(frozen=True)\nclass Constant(ScoringPolicy):\n"
        "    def score(self, tokens):\n        return tokens.hidden.new_ones(tokens.valid.shape)\n"
    )
    file = write(tmp_path / "a.yaml", methods={"A": "constant_policy.Constant"})
    assert prunekit("run", file, "--output", tmp_path / "out") == 2
    said = capsys.readouterr().err
    assert "Constant at 'input'" in said
    assert "Answers so far are kept" in said
    assert len(predictions(tmp_path / "out")) == SMALL["batch_size"]


def test_a_damaged_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.yaml")
    assert prunekit("run", file, "--output", tmp_path / "out") == 0
    (tmp_path / "out" / "result.json").unlink()
    lines = (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()
    lines[2] = lines[2][:30]
    (tmp_path / "out" / "predictions.jsonl").write_text("\n".join(lines) + "\n")
    assert "predictions.jsonl, line 3 is no prediction" in refused(capsys, "run", file, "--output", tmp_path / "out")
