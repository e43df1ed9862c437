"""Fitting from the command line, and the schedules that are shipped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from experiments import prunekit, refused, write

from prunekit.evaluation import Scenes, load_experiment
from prunekit.evaluation.data import collate
from prunekit.fitting import fit_schedule
from prunekit.models import tiny
from prunekit.policies import VTW, FitPrune

FEW = ("--samples", 2, "--task", "{class_path: Scenes, init_args: {split: development, scenes: 2}}")


def test_fit_prints_a_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "fitted.yaml"
    assert prunekit("fit", "tiny", "--saving", 0.5, *FEW, "--output", file) == 0
    text = capsys.readouterr().out
    assert text == file.read_text(encoding="utf-8")
    assert text.startswith("# prunekit fit tiny --saving 0.5 --samples 2 --task '{class_path: Scenes,")
    assert "2 samples" in text
    experiment = load_experiment(write(tmp_path / "my.yaml", methods=yaml.safe_load(text)))
    model, processor = tiny.load()
    task = Scenes(split="development", scenes=2)
    again = fit_schedule(model, [collate(processor, [task[number]]) for number in (0, 8)], 0.5)
    assert experiment.methods == {"FitPrune 0.5": again.method}
    assert max(map(len, text.splitlines())) <= 120


def test_fit_searches_a_layer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prunekit("fit", "tiny", "--method", "VTW", "--threshold", 0.5, "--first", 3, *FEW) == 0
    text = capsys.readouterr().out
    experiment = load_experiment(write(tmp_path / "my.yaml", methods=yaml.safe_load(text)))
    assert list(experiment.methods.values()) == [VTW(3)]
    assert [line.split(":")[0] for line in text.splitlines() if line.startswith("#  ")] == [
        f"#   {i}" for i in range(3, 8)
    ]


def test_fit_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: Any) -> str:
        return refused(capsys, "fit", *words)

    assert "saving=1.5: a share" in said("tiny", "--saving", 1.5, *FEW)
    assert "can be reached" in said("tiny", "--saving", 0.95, *FEW)
    assert "Did you mean 'FitPrune'?" in said("tiny", "--method", "Fitprun", "--saving", 0.5)
    assert "'STAR' has nothing to fit" in said("tiny", "--method", "STAR")
    assert "--saving 0.5" in said("tiny")
    assert "--threshold 0.99" in said("tiny", "--method", "VTW")
    assert "--threshold belongs to VTW" in said("tiny", "--saving", 0.5, "--threshold", 0.5)
    assert "--saving belongs to FitPrune" in said("tiny", "--saving", 0.5, "--method", "VTW")
    assert "no layer from 7 to 7" in said("tiny", "--method", "VTW", "--threshold", 1, "--first", 7, *FEW)
    assert "at least 1 is needed" in said("tiny", "--saving", 0.5, "--samples", 0)
    assert "the task Scenes has only 1200" in said("tiny", "--saving", 0.5, "--samples", 5000)
    assert "Did you mean 'Scenes'?" in said("tiny", "--saving", 0.5, "--task", "Scene")
    assert "is no YAML" in said("tiny", "--saving", 0.5, "--task", "{a")
    assert "Did you mean 'tiny'?" in said("tinyy", "--saving", 0.5)
    assert "see prunekit fit --help" in said("tiny", "--saving", "half")
    assert "see prunekit fit --help" in said("tiny", "--saving", 0.5, "--dtype", "int8")
    assert "is no folder" in said("tiny", "--saving", 0.5, "--output", tmp_path / "none" / "x.yaml")
    assert f"{tmp_path} exists" in said("tiny", "--saving", 0.5, "--output", tmp_path)


def test_fit_refuses_a_model_without_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    assert "is a model of type 'gpt2'" in refused(capsys, "fit", tmp_path, "--saving", 0.5)


# --- the shipped schedules -------------------------------------------------------------------------------------------


def test_shipped_schedules_name_their_commands() -> None:
    path = Path(__file__).resolve().parents[1] / "benchmarks" / "experiments" / "zoo.yaml"
    text = path.read_text(encoding="utf-8")
    fitted = {name: method for name, method in load_experiment(path).methods.items() if isinstance(method, FitPrune)}
    assert len(fitted) == 2
    for name, method in fitted.items():
        assert f"prunekit fit tiny --saving {name.split()[1]}\n" in text
        assert len(method.deletions) == 8
