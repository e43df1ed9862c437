"""The command line: help that teaches, lists, costs, and what it does with options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from experiments import prunekit, refused, result, write

import prunekit as package
from prunekit import policies


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        prunekit("--help")
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert prunekit() == 0
    assert capsys.readouterr().out == text
    for word in ("examples:", "quickstart", "results:", "report.html", "ScoringPolicy", "exit codes:", "--output"):
        assert word in text
    assert max(map(len, text.splitlines())) <= 80


def test_the_example_in_the_help_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prunekit()
    text = capsys.readouterr().out
    code = text.partition("beside the YAML file:\n")[2].partition("and in the YAML file:")[0]
    experiment = text.partition("and in the YAML file:\n")[2].partition("exit codes:")[0]
    (tmp_path / "my_module.py").write_text("\n".join(line[2:] for line in code.splitlines()))
    (tmp_path / "my.yaml").write_text("\n".join(line[2:] for line in experiment.splitlines()))
    options = ("--task.init_args.scenes", 1, "--timing_samples", 0, "--overlay_samples", 0)
    assert prunekit("run", tmp_path / "my.yaml", "--output", tmp_path / "out", *options) == 0
    names = [row["name"] for row in result(tmp_path / "out")["methods"]]
    assert names == ["dense", "Loudest", "Loudest", "two stages", "two stages"]


def test_help_of_run_lists_every_key(capsys: pytest.CaptureFixture[str]) -> None:
    assert prunekit("run", "--help") == 0
    text = capsys.readouterr().out
    for option in ("--methods", "--budgets", "--task", "--model.path", "--unreachable", "--trainer", "--batch_size"):
        assert option in text
    assert "Average number of visual tokens per decoder layer" in text


def test_lists(capsys: pytest.CaptureFixture[str]) -> None:
    assert prunekit("list", "policies") == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines()] == policies.__all__
    for kind, name in (("models", "llava"), ("tasks", "Scenes"), ("experiments", "quickstart")):
        assert prunekit("list", kind, "--json") == 0
        assert name in [entry["name"] for entry in json.loads(capsys.readouterr().out)]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert prunekit("--version") == 0
    assert capsys.readouterr().out == f"prunekit {package.__version__}\n"


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    assert "Did you mean 'list'?" in refused(capsys, "lst")
    assert "Did you mean 'policies'?" in refused(capsys, "list", "polices")
    assert "see prunekit list --help" in refused(capsys, "list")
    assert "name the experiment first" in refused(capsys, "run", "--seed", "1")
    assert "unrecognized arguments: --verson" in refused(capsys, "--verson")
    assert "Did you mean 'STAR'?" in refused(capsys, "flops", "tiny", "STRA")
    assert "methods.FastV at budget 0.01" in refused(capsys, "flops", "tiny", "FastV", "--budget", "0.01")


def test_flops(capsys: pytest.CaptureFixture[str]) -> None:
    methods = ("STAR", "{class_path: FastV, init_args: {layer: 1}}", "{class_path: FastV, init_args: {layer: 3}}")
    assert prunekit("flops", "tiny", *methods, "--budget", "80", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    rows = [found["dense"], *found["pruned"]]
    assert [row["name"] for row in rows] == ["dense", "STAR", "FastV", "FastV 2"]
    assert all(row["total_macs"] == sum(row["macs"].values()) for row in rows)
    assert all(row["total_macs"] < rows[0]["total_macs"] for row in rows[1:])
    assert prunekit("flops", "tiny", "STAR") == 0
    shown = capsys.readouterr().out
    assert "STAR" in shown
    assert "100 %" in shown


def test_options_win_over_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "a.yaml")
    options = ("--methods.STAR", "STAR", "--methods.STAR.init_args.layer", 2, "--budgets", "[0.5]", "--seed=7")
    assert prunekit("run", file, "--output", tmp_path / "out", "--task.init_args.scenes=1", *options) == 0
    found = result(tmp_path / "out")
    assert [(row["name"], row["budget"]) for row in found["methods"]] == [
        ("dense", None),
        ("Random", 0.5),
        ("STAR", 0.5),
    ]
    assert found["methods"][2]["stages"][1]["site"] == "decoder.2"
    assert found["experiment"]["seed"] == 7


def test_the_table(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    methods = {"Random": "Random", "FastV": {"class_path": "FastV", "init_args": {"layer": 4}}}
    write(
        tmp_path / "a.yaml",
        methods=methods,
        unreachable="skip",
        task={"class_path": "Scenes", "init_args": {"scenes": 1}},
    )
    assert prunekit("run", "a.yaml") == 0
    text = capsys.readouterr().out
    assert "not reachable (min 72.5)" in text
    (folder,) = (tmp_path / "runs").iterdir()
    assert folder.name.endswith("-a")
    assert f"Report: runs/{folder.name}/report.html" in text
