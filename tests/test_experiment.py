"""From a YAML file to a result: what a run writes, and that all of it is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from experiments import SMALL, predictions, prunekit, refused, result, write
from PIL import Image

from prunekit import Keep, Stage
from prunekit.adapter import adapter_for
from prunekit.errors import OutputError
from prunekit.evaluation import Experiment, ModelSpec, Result, Scenes, load_experiment, run
from prunekit.evaluation.config import shipped_experiments
from prunekit.evaluation.experiment import resolved
from prunekit.models import tiny
from prunekit.policies import STAR, FastV, Random, UniformGrid

LOUD = '''
from dataclasses import dataclass
from prunekit import ScoringPolicy

@dataclass(frozen=True)
class Loudest(ScoringPolicy):
    """Keep the visual tokens with the largest norm."""

    sign: float = 1.0

    def score(self, tokens):
        return self.sign * tokens.hidden.norm(dim=-1)
'''
METHODS = {
    "Random": "Random",
    "FastV": {"class_path": "FastV", "init_args": {"layer": 1}},
    "STAR": "STAR",
    "mine": [
        {"site": "input", "policy": "loud.Loudest", "keep": {"ratio": 0.5}},
        {"site": "decoder.2", "policy": {"class_path": "CrossAttention"}, "keep": {"ratio": 0.1}},
    ],
    "as is": {"class_path": "STAR", "init_args": {"keep": {"tokens": 20}, "layer": 2}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run with everything in it, shared by the tests that look at its output."""
    home = tmp_path_factory.mktemp("experiment")
    (home / "loud.py").write_text(LOUD)
    changes = {
        "fixed": ["as is"],
        "budgets": [0.25, 9],
        "unreachable": "skip",
        "timing_samples": 1,
        "overlay_samples": 2,
    }
    experiment = write(home / "all.yaml", methods=METHODS, **changes)
    assert prunekit("run", experiment, "--output", home / "out", "--seed", 3) == 0
    return home / "out"


def rows(folder: Path) -> dict[tuple[str, Any], dict[str, Any]]:
    return {(row["name"], row["budget"]): row for row in result(folder)["methods"]}


def test_every_method_meets_every_budget(folder: Path) -> None:
    found = rows(folder)
    names = [name for name in METHODS if name != "as is"]
    assert set(found) == {("dense", None), ("as is", None), *((n, b) for n in names for b in (0.25, 9))}
    assert next(iter(found)) == ("dense", None)
    for (name, budget), row in found.items():
        if budget is not None and row["accuracy"] is not None:
            average = 36 if budget == 0.25 else budget
            assert 0.8 * average <= row["average_visual_tokens"] <= average, name
    assert found["dense", None]["average_visual_tokens"] == 144
    assert found["as is", None]["final_visual_tokens"] == 20


def test_a_budget_out_of_reach_is_shown(folder: Path) -> None:
    row = rows(folder)["FastV", 9]
    assert row["accuracy"] is None
    assert "its range is 18.875 to" in row["reason"]


def test_a_row_follows_from_its_predictions(folder: Path) -> None:
    lines = predictions(folder)
    for (name, budget), row in rows(folder).items():
        own = [line for line in lines if (line["method"], line["budget"]) == (name, budget)]
        if row["accuracy"] is None:
            assert not own
            continue
        assert len(own) == row["questions"] == 16
        assert [line["index"] for line in own] == list(range(16))
        assert row["accuracy"] == pytest.approx(sum(line["correct"] for line in own) / 16)
        assert row["interval"][0] <= row["accuracy"] <= row["interval"][1]
        for family, accuracy in row["families"].items():
            right = [line["correct"] for line in own if line["family"] == family]
            assert accuracy == pytest.approx(sum(right) / len(right))
        last = [list(line["kept"].values())[-1] if line["kept"] else line["visual"] for line in own]
        assert row["final_visual_tokens"] == pytest.approx(sum(last) / 16)
        for line in own:
            assert line["correct"] == (line["prediction"].split()[:1] == [line["answer"]])


def test_all_methods_get_the_same_samples(folder: Path) -> None:
    asked: dict[Any, list[str]] = {}
    for line in predictions(folder):
        asked.setdefault((line["method"], line["budget"]), []).append(line["sample"])
    assert len({tuple(samples) for samples in asked.values()}) == 1


def test_predictions_are_those_of_the_model(folder: Path) -> None:
    """Batching changes nothing, and neither does anything else that lies between a model and its answer."""
    model, processor = tiny.load()
    task = Scenes(scenes=2)
    own = [line for line in predictions(folder) if line["method"] == "dense"]
    for index in (0, 5, 15):
        inputs = processor(images=list(task[index].images), text=task[index].prompt, return_tensors="pt")
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        text = processor.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert own[index]["prediction"] == text.strip()


def test_costs_of_every_row(folder: Path) -> None:
    found = rows(folder)
    dense = found["dense", None]
    for row in found.values():
        if row["accuracy"] is None:
            continue
        assert row["prefill_ms"] > 0
        assert row["flops"] == 2 * sum(row["macs"].values())
        assert row["macs"]["vision"] == dense["macs"]["vision"]
        assert row is dense or row["macs"]["prefill"] < dense["macs"]["prefill"]


def test_comparison_with_dense(folder: Path) -> None:
    found, lines = rows(folder), predictions(folder)
    truth = {line["index"]: line["correct"] for line in lines if line["method"] == "dense"}
    assert found["dense", None]["versus_dense"] is None
    own = {line["index"]: line["correct"] for line in lines if (line["method"], line["budget"]) == ("mine", 0.25)}
    versus = found["mine", 0.25]["versus_dense"]
    assert versus["lost"] == sum(truth[i] and not own[i] for i in truth)
    assert versus["gained"] == sum(own[i] and not truth[i] for i in truth)
    assert versus["difference"] == pytest.approx((versus["gained"] - versus["lost"]) / 16)


def test_where_a_result_comes_from(folder: Path) -> None:
    found = result(folder)
    assert found["provenance"]["seed"] == 3
    assert {"python", "torch", "transformers", "prunekit"} <= set(found["provenance"]["versions"])
    assert {"processor", "cores", "device"} <= set(found["provenance"]["hardware"])
    assert found["experiment"] == yaml.safe_load((folder / "config.yaml").read_text())
    assert "batch size 1" in found["notes"]["prefill_ms"]


def test_result_can_be_read_back(folder: Path, tmp_path: Path) -> None:
    read = Result.read(folder / "result.json")
    read.write(tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == result(folder)
    assert read["STAR", 0.25].versus_dense is not None
    with pytest.raises(KeyError):
        read["STAR", 0.5]


def test_pictures(folder: Path) -> None:
    pictures = sorted((folder / "overlays").glob("*.png"))
    assert len(pictures) == 2
    for path in [folder / "pareto.png", *pictures]:
        with Image.open(path) as image:
            assert min(image.size) > 400
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 20


def test_the_report_needs_nothing_else(folder: Path) -> None:
    page = (folder / "report.html").read_text(encoding="utf-8")
    body = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert "plotly.js v" in page
    assert not re.search(r"<(script|img|link|iframe)[^>]+(src|href)\s*=\s*[\"']?(https?:)?//", page)
    assert body.count("data:image/png;base64,") == 2
    for text in ("STAR", "mine", "as is", "color of digit", "not reachable", "loud.Loudest", "95 % interval"):
        assert text in body


def test_the_resolved_config_runs_the_same_again(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # away from the YAML and its module
    again = load_experiment(folder / "config.yaml", ["--timing_samples", "0", "--overlay_samples", "0"])
    assert resolved(again) == result(folder)["experiment"] | {"timing_samples": 0, "overlay_samples": 0}
    run(again, "again")
    assert predictions(tmp_path / "again") == predictions(folder)


def test_a_finished_run_is_not_run_again(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunekit.evaluation.runner.load_model", None)
    before = (folder / "result.json").stat().st_mtime_ns
    assert prunekit("run", folder / "config.yaml", "--output", folder) == 0
    assert "STAR" in capsys.readouterr().out
    assert (folder / "result.json").stat().st_mtime_ns == before


def test_a_folder_of_another_experiment_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "run", folder / "config.yaml", "--output", folder, "--seed", 4, "--methods.new", "Random")
    assert "seed is 3 there and 4 here" in said
    assert "methods.new" in said
    with pytest.raises(OutputError, match="holds files, but no run"):
        run(load_experiment(folder / "config.yaml"), folder.parent)


def test_from_python(tmp_path: Path) -> None:
    stages = [Stage("vision.2", UniformGrid(), Keep(tokens=50)), Stage("decoder.3", Random(seed=1), Keep(tokens=10))]
    experiment = Experiment(
        methods={"stages": stages, "FastV": FastV(keep=0.5)},
        task=Scenes(split="development", scenes=1),
        model=ModelSpec(attn_implementation="eager"),
        timing_samples=0,
        overlay_samples=0,
        trainer=SMALL["trainer"],
    )
    found = run(experiment, tmp_path / "out")
    assert [row.name for row in found.methods] == ["dense", "stages", "FastV"]
    assert found["stages", None].average_visual_tokens == (3 * 50 + 5 * 10) / 8
    assert found["FastV", None].final_visual_tokens == 72
    assert load_experiment(tmp_path / "out" / "config.yaml") == experiment


def test_a_logger_named_in_the_yaml(tmp_path: Path) -> None:
    logger = {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "logs")}}
    file = write(tmp_path / "a.yaml", trainer={**SMALL["trainer"], "logger": logger})
    assert prunekit("run", file, "--output", tmp_path / "out") == 0
    (metrics,) = (tmp_path / "logs").rglob("metrics.csv")
    heads, values = metrics.read_text().splitlines()
    logged = dict(zip(heads.split(","), values.split(","), strict=True))
    row = rows(tmp_path / "out")["Random", 0.25]
    assert float(logged["accuracy/Random 25 %"]) == pytest.approx(row["accuracy"])


LOOKS_INTO_THE_MODEL = {"cls_layers"}  # explains results, and so must not see the samples that they come from


@pytest.mark.parametrize("path", shipped_experiments().values(), ids=shipped_experiments())
def test_shipped_experiments(path: Path) -> None:
    assert path.read_text().startswith(f"# prunekit run benchmarks/experiments/{path.name}\n")
    experiment = load_experiment(path)
    assert len(experiment.task) >= 1000
    expected = "development" if path.stem in LOOKS_INTO_THE_MODEL else "test"
    assert experiment.task.split == expected  # type: ignore[attr-defined]


def test_the_session_leaves_nothing_on_the_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, processor = tiny.load()
    sample = Scenes(scenes=1)[0]
    model(**processor(images=list(sample.images), text=sample.prompt, return_tensors="pt"))  # transformers adds its own
    monkeypatch.setattr("prunekit.evaluation.runner.load_model", lambda spec: model)
    names = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")
    before = [[dict(getattr(m, name)) for name in names] for m in model.modules()]
    counts = {"timing_samples": 1, "overlay_samples": 1}
    run(
        Experiment(methods={"STAR": STAR()}, task=Scenes(scenes=1), trainer=SMALL["trainer"], **counts),
        tmp_path / "out",
    )
    assert [[dict(getattr(m, name)) for name in names] for m in model.modules()] == before
    assert adapter_for(model).depth == 8
