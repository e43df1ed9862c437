"""`prunekit new-policy` writes files that pass as they are; policies of other packages are found."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import yaml

from prunekit import plugins
from prunekit.cli import main
from prunekit.errors import PruningWarning
from prunekit.evaluation.config import load_experiment
from prunekit.plugins import available_policies
from prunekit.policies import Random


def first_block(page: str, language: str) -> str:
    """The first block of code in a language."""
    found = re.search(rf"```{language}\n(.*?)```", page, re.DOTALL)
    assert found is not None
    return found[1]


def test_what_is_written_passes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-policy", "TopLoud2", "--output", str(tmp_path)]) == 0
    written = sorted(file.name for file in tmp_path.iterdir())
    assert written == ["test_top_loud2.py", "top_loud2.md", "top_loud2.py"]
    assert f"pytest {written[0]}" in capsys.readouterr().out
    page = (tmp_path / "top_loud2.md").read_text()
    (tmp_path / "snippet.py").write_text(first_block(page, "python"))
    commands = (["-m", "pytest", "-q", "-p", "no:cacheprovider", written[0]], ["snippet.py"])
    for command in commands:
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    methods = yaml.safe_load(first_block(page, "yaml"))["methods"]
    (tmp_path / "a.yaml").write_text(yaml.safe_dump({"task": "Scenes", "methods": methods}))
    experiment = load_experiment(tmp_path / "a.yaml", [])
    assert [type(method).__name__ for method in experiment.methods.values()] == ["TopLoud2"] * 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("loud", "give the name of a class"),
        ("../Loud", "give the name of a class"),
        ("STAR", "prunekit has a policy of this name"),
    ],
)
def test_names_that_are_refused(name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["new-policy", name, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "loud.md").write_text("mine")
    assert main(["new-policy", "Loud", "--output", str(tmp_path)]) == 2
    assert "loud.md exists already; nothing was written" in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["loud.md"]


def test_policies_of_installed_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    points = {
        "Theirs": "prunekit.policies:Random",
        "Random": "prunekit.policies:UniformGrid",  # own names win
        "Gone": "no_such_module:Policy",
        "Wrong": "pathlib:Path",
    }
    made = [EntryPoint(name, value, plugins.GROUP) for name, value in points.items()]
    monkeypatch.setattr(plugins, "entry_points", lambda group: made)
    with pytest.warns(PruningWarning) as caught:
        found: dict[str, Any] = available_policies()
    assert found["Theirs"] is found["Random"] is Random
    assert not {"Gone", "Wrong"} & found.keys()
    said = sorted(str(warning.message) for warning in caught)
    assert "'Gone'" in said[0]
    assert "ModuleNotFoundError" in said[0]
    assert "neither a PruningPolicy nor a Method" in said[1]


def test_compatible_policies(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "policies", "--compatible", "qwen2_vl"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert lines["Random"] == "vision.2, input, decoder.2"
    assert lines["FasterVLM"].startswith("no: ")
    assert "no [CLS] token" in lines["FasterVLM"]
    assert main(["list", "models", "--compatible", "tiny"]) == 2
    assert "--compatible goes with 'prunekit list policies'" in capsys.readouterr().err
