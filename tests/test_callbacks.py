"""Lightning callbacks that log what methods cost, named in an experiment's trainer."""

from __future__ import annotations

import csv
import sys
import textwrap
from pathlib import Path

import pytest
import yaml
from experiments import prunekit, refused, write


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Everything that a logger receives from an experiment with all callbacks."""
    folder = tmp_path_factory.mktemp("callbacks")
    callbacks = [
        "KeptTokensCallback",
        "CostCallback",
        {"class_path": "LatencyCallback", "init_args": {"repeats": 2, "decode_tokens": 1}},
    ]
    logger = {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "callbacks": callbacks, "logger": logger}
    task = {"class_path": "Scenes", "init_args": {"scenes": 1}}
    path = write(folder / "my.yaml", trainer=trainer, task=task, methods={"STAR": "STAR"}, budgets=[0.5])
    assert prunekit("run", path, "--output", folder / "run") == 0
    (file,) = folder.rglob("metrics.csv")
    found: dict[str, float] = {}
    for line in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        found |= {name: float(value) for name, value in line.items() if value and name not in ("epoch", "step")}
    return found


def test_callbacks_log_tokens(logged: dict[str, float]) -> None:
    dense = [logged[f"visual_tokens/dense/decoder.{layer}"] for layer in range(8)]
    pruned = [logged[f"visual_tokens/STAR 50 %/decoder.{layer}"] for layer in range(8)]
    assert dense == [144] * 8
    assert pruned == sorted(pruned, reverse=True)
    assert logged["visual_tokens/STAR 50 %/average"] == pytest.approx(sum(pruned) / 8)
    assert 60 < logged["visual_tokens/STAR 50 %/average"] <= 72


def test_callbacks_log_operations(logged: dict[str, float]) -> None:
    for label in ("dense", "STAR 50 %"):
        parts = [value for name, value in logged.items() if name.startswith(f"macs/{label}/")]
        assert len(parts) == 5
        assert logged[f"flops/{label}"] == pytest.approx(2 * sum(parts))
    assert logged["flops/STAR 50 %"] < logged["flops/dense"]


def test_callbacks_log_time_and_memory(logged: dict[str, float]) -> None:
    for name in ("prefill_ms", "decode_ms", "peak_memory_mib"):
        assert logged[f"{name}/dense"] > 0
        assert logged[f"{name}/STAR 50 %"] > 0
    assert {name for name in logged if "speedup" in name} == {
        "prefill_speedup/STAR 50 %",
        "decode_speedup/STAR 50 %",
    }
    assert "accuracy/STAR 50 %" in logged


def test_a_callback_beside_the_yaml_file(tmp_path: Path) -> None:
    """Found by its module's name, and found again by the configuration of the run, from anywhere."""
    code = """
        from pathlib import Path
        from pytorch_lightning import Callback

        class Noting(Callback):
            def __init__(self, file: str):
                self.file = file

            def on_test_end(self, trainer, pl_module):
                Path(self.file).write_text(" ".join(sorted(trainer.callback_metrics)))
        """
    (tmp_path / "my_callback_module.py").write_text(textwrap.dedent(code))
    noting = {"class_path": "my_callback_module.Noting", "init_args": {"file": str(tmp_path / "noted")}}
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "callbacks": [noting, "KeptTokensCallback"]}
    task = {"class_path": "Scenes", "init_args": {"scenes": 1}}
    path = write(tmp_path / "my.yaml", trainer=trainer, task=task, methods={"Random": "Random"}, budgets=[0.5])
    assert prunekit("run", path, "--output", tmp_path / "run") == 0
    assert "visual_tokens/Random 50 %/decoder.3" in (tmp_path / "noted").read_text()
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["trainer"]["callbacks"] == [noting, "KeptTokensCallback"]
    assert config["imports"] == [str(tmp_path)]
    del sys.modules["my_callback_module"]
    assert prunekit("run", tmp_path / "run" / "config.yaml", "--output", tmp_path / "again") == 0
    del sys.modules["my_callback_module"]


def test_misspelt_callbacks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = {"accelerator": "cpu", "callbacks": [{"class_path": "LatencyCallback", "init_args": {"repeat": 2}}]}
    said = refused(capsys, "run", write(tmp_path / "my.yaml", trainer=trainer), "--output", tmp_path / "run")
    assert "trainer" in said
    assert "repeat" in said
