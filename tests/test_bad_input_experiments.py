"""Every mistake in an experiment is one message that names the place, made before any weights are loaded."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from experiments import predictions, prunekit, refused, write

from prunekit.models.tiny import PATH

STAGE = {"site": "input", "policy": "Random", "keep": {"ratio": 0.5}}


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(spec: Any) -> None:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("prunekit.evaluation.runner.load_model", load)


def stages(**changes: Any) -> dict[str, Any]:
    return {"methods": {"A": [{**STAGE, **changes}]}, "budgets": []}


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "misspelt key": ({"budgts": [1]}, "a.yaml: budgts: not accepted; allowed are methods, .*Did you mean 'budgets'?"),
    "misspelt key of the model": ({"model": {"pth": "x"}}, "a.yaml: model.pth: not accepted; .*Did you mean 'path'?"),
    "misspelt argument of a method": (
        {"methods": {"A": {"class_path": "FastV", "init_args": {"kep": 1}}}},
        "a.yaml: methods.A.init_args.kep: not accepted; allowed are keep, layer. Did you mean 'keep'?",
    ),
    "misspelt keep": (stages(keep={"ratoi": 0.5}), r"a.yaml: methods.A\[0\].keep.ratoi: not .*Did you mean 'ratio'?"),
    "argument outside of init_args": (
        {"methods": {"A": {"class_path": "FastV", "layer": 2}}},
        "a.yaml: methods.A.layer: not accepted here; allowed are class_path, init_args.",
    ),
    "unknown method": ({"methods": {"A": "FasterVML"}}, "a.yaml: methods.A: there is no .*Did you mean 'FasterVLM'?"),
    "unknown policy": (stages(policy="Rndom"), r"a.yaml: methods.A\[0\].policy: there is .*Did you mean 'Random'?"),
    "unknown module": ({"methods": {"A": "nomodule.A"}}, "methods.A: 'nomodule.A' cannot be imported"),
    "unknown class of a module": ({"methods": {"A": "prunekit.policies.STR"}}, "has no 'STR'. Did you mean 'STAR'?"),
    "a class that is no method": ({"methods": {"A": "pathlib.Path"}}, "methods.A: 'pathlib.Path' is no Method or "),
    "an abstract class": ({"methods": {"A": "prunekit.ScoringPolicy"}}, "'prunekit.ScoringPolicy' is abstract"),
    "unknown task": ({"task": "Scenez"}, "a.yaml: task: there is no Task named 'Scenez'; .*Did you mean 'Scenes'?"),
    "wrong type": (
        {"methods": {"A": {"class_path": "FastV", "init_args": {"layer": "two"}}}},
        "a.yaml: methods.A.init_args.layer: expected a whole number, given 'two'.",
    ),
    "wrong type of the model": ({"model": {"dtype": "float"}}, "model.dtype: expected 'float32' or .*given 'float'."),
    "methods as a list": ({"methods": ["FastV"]}, r"a.yaml: methods: expected names with values, given \['FastV'\]."),
    "budgets that are no list": ({"budgets": 0.5}, "a.yaml: budgets: expected a list"),
    "a budget in words": ({"budgets": ["half"]}, r"a.yaml: budgets\[0\]: expected .*given 'half'."),
    "a budget of 0": ({"budgets": [0.5, 0]}, r"a.yaml: budgets\[1\]: 0 is no budget"),
    "a share above 1": ({"budgets": [1.5]}, r"a.yaml: budgets\[0\]: 1.5 is above 1"),
    "a budget above the number of tokens": ({"budgets": [200]}, "methods.Random at budget 200: .*has only 144"),
    "a budget twice": ({"budgets": [0.5, 0.5]}, r"budgets\[1\]: 0.5 is listed twice"),
    "a budget out of reach": (
        {"methods": {"late": {"class_path": "FastV", "init_args": {"layer": 4}}}, "budgets": [0.9, 0.1]},
        "methods.late at budget 0.1: FastV cannot reach 14.4 .*its range is 72.5 to 144. Write 'unreachable: skip'",
    ),
    "no budget": ({"budgets": []}, "methods.Random: Random alone has no budget"),
    "a stage without keep": (stages(keep=None), r"methods.A\[0\]: Stage\('input'\): Random needs a budget"),
    "a ratio of 0": (stages(keep={"ratio": 0.0}), r"methods.A\[0\].keep: Keep\(ratio=0.0\): must be above 0"),
    "a ratio above 1": (stages(keep={"ratio": 2.0}), r"methods.A\[0\].keep: Keep\(ratio=2.0\): must be above 0"),
    "too many tokens": (stages(keep={"tokens": 200}), r"methods.A: Keep\(tokens=200\): .*only 144 visual tokens"),
    "decoder.0": (stages(site="decoder.0"), r"methods.A\[0\]: 'decoder.0' is no site: .*pruning at 'input'"),
    "a layer beyond the depth": (stages(site="decoder.9"), "methods.A: 'decoder.9': .*allowed are 'decoder.1' to "),
    "a vision layer beyond": (stages(site="vision.9"), "methods.A: 'vision.9': .*'vision.0' to 'vision.3'"),
    "no site": (stages(site="decodr.1"), r"methods.A\[0\]: 'decodr.1' is no site; .*Did you mean 'decoder.1'?"),
    "a policy at the wrong site": (stages(policy="CrossAttention"), "methods.A: CrossAttention cannot work at 'input'"),
    "the name of the baseline": ({"methods": {"dense": "FastV"}}, "a.yaml: methods.dense: the name is taken"),
    "an unknown fixed method": ({"fixed": ["Randm"]}, "a.yaml: fixed: 'Randm' is none .*Did you mean 'Random'?"),
    "an empty task": ({"task": {"class_path": "Scenes", "init_args": {"scenes": 0}}}, "task: .*at least 1 scene"),
    "no such model": ({"model": {"path": "tny"}}, "model.path: 'tny' is no folder; .*Did you mean 'tiny'?"),
    "unknown setting of the trainer": ({"trainer": {"acelerator": "cpu"}}, "trainer.acelerator: .*'accelerator'?"),
    "unknown accelerator": ({"trainer": {"accelerator": "cpuu"}}, "trainer: .*invalid accelerator"),
    "unknown logger": (
        {"trainer": {"logger": {"class_path": "pytorch_lightning.loggers.CSVLoger"}}},
        "trainer.logger: module 'pytorch_lightning.loggers' has no 'CSVLoger'. Did you mean 'CSVLogger'?",
    ),
    "batch size 0": ({"batch_size": 0}, "a.yaml: batch_size: must be at least 1"),
}


@pytest.mark.usefixtures("no_weights")
@pytest.mark.parametrize("name", CASES)
def test_mistakes(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes, message = CASES[name]
    said = refused(capsys, "run", write(tmp_path / "a.yaml", **changes), "--output", tmp_path / "out")
    assert re.search(message, said)
    assert len(said.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


TEXTS = {
    "a tab": ("methods:\n\tA: FastV\n", "line 2, column 1: a tab, but YAML is indented with spaces"),
    "a bracket": ("methods: {A: FastV", "line 1, column 19: expected ',' or '}'"),
    "a key twice": ("seed: 1\nseed: 2\n", "line 2, column 1: key 'seed' is given twice"),
    "nothing": ("", "holds nothing, but an experiment is keys with values"),
    "a word": ("hello", "holds 'hello', but"),
    "no task": ("methods: {A: FastV}", "task: required, but not given"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_files_that_are_no_experiment(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text, message = TEXTS[name]
    (tmp_path / "a.yaml").write_text(text)
    said = refused(capsys, "run", tmp_path / "a.yaml")
    assert message in said
    assert "a.yaml" in said


def test_missing_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path / "first.yaml")
    assert f"Did you mean '{tmp_path / 'first.yaml'}'?" in refused(capsys, "run", tmp_path / "frist.yaml")
    assert "Did you mean 'quickstart'?" in refused(capsys, "run", "quickstrat")
    assert "is a folder" in refused(capsys, "run", tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    assert "is no text file" in refused(capsys, "run", tmp_path / "binary.yaml")


def test_overrides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "a.yaml")
    assert "budgets[0]: 2.5 is above 1" in refused(capsys, "run", file, "--budgets", "[2.5]")
    assert "metods: not accepted" in refused(capsys, "run", file, "--metods.A", "STAR")
    assert "methods.B: there is no" in refused(capsys, "run", file, "--methods.B", "STR")
    assert "seed: expected a whole number, given 'x'" in refused(capsys, "run", file, "--seed=x")
    assert "expected one argument" in refused(capsys, "run", file, "--seed")
    assert "expected one argument" in refused(capsys, "run", file, "--output")


def damaged(home: Path, name: str) -> Path:
    """A copy of the bundled model with one file cut in half."""
    folder = home / "model"
    shutil.copytree(PATH, folder)
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[: len(content) // 2])
    return folder


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("config.json", "the config.json of .* cannot be read"),
        ("model.safetensors", "the weights of .* cannot be read: SafetensorError"),
        ("tokenizer.json", "the processor of .* cannot be read"),
    ],
)
def test_damaged_models(name: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = damaged(tmp_path, name)
    said = refused(capsys, "run", write(tmp_path / "a.yaml", model={"path": str(model)}), "--output", tmp_path / "out")
    assert re.search(message, said)


def test_weights_in_another_format(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickle can run code; it is not read, whatever is in it."""
    model = tmp_path / "model"
    shutil.copytree(PATH, model)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    said = refused(capsys, "run", write(tmp_path / "a.yaml", model={"path": str(model)}), "--output", tmp_path / "out")
    assert "model.safetensors" in said


@pytest.mark.usefixtures("no_weights")
def test_models_that_are_not_supported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "model"
    model.mkdir()
    file = write(tmp_path / "a.yaml", model={"path": str(model)})
    assert "the config.json of" in refused(capsys, "run", file)
    (model / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert "is a model of type 'bert'; supported are aya_vision, " in refused(capsys, "run", file)


@pytest.mark.usefixtures("no_weights")
def test_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    said = refused(capsys, "run", write(tmp_path / "a.yaml"), "--output", tmp_path / "file" / "out")
    assert f"--output {tmp_path / 'file' / 'out'}: cannot be written" in said


BROKEN = """
from dataclasses import dataclass
from pathlib import Path
from PIL import Image
from prunekit.evaluation import Sample, Scenes, Task

@dataclass(frozen=True)
class FromFiles(Scenes):
    folder: str = ""

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        path = Path(self.folder) / f"{index}.png"
        if not path.exists():
            sample.images[0].save(path)
        return Sample(**{**vars(sample), "images": (Image.open(path),)})

@dataclass(frozen=True)
class Nothing(Scenes):
    def __len__(self):
        return 0
"""


def test_damaged_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The run ends at the damaged image; what came before is kept, and once it is repaired the run goes on."""
    (tmp_path / "file_task.py").write_text(BROKEN)
    images = tmp_path / "images"
    images.mkdir()
    arguments = {"scenes": 1, "folder": str(images)}
    file = write(tmp_path / "a.yaml", task={"class_path": "file_task.FromFiles", "init_args": arguments})
    (images / "6.png").write_bytes((PATH / "config.json").read_bytes())
    said = refused(capsys, "run", file, "--output", tmp_path / "out")
    assert "task FromFiles, sample 6: an image cannot be read: cannot identify image file" in said
    assert "Answers so far are kept. Continue with: prunekit run" in said
    assert len(predictions(tmp_path / "out")) == 8
    whole = (images / "5.png").read_bytes()
    (images / "6.png").write_bytes(whole[: len(whole) // 2])
    assert "sample 6: an image cannot be read" in refused(capsys, "run", file, "--output", tmp_path / "out")
    (images / "6.png").unlink()
    assert prunekit("run", file, "--output", tmp_path / "out") == 0
    assert len(predictions(tmp_path / "out")) == 16


@pytest.mark.usefixtures("no_weights")
def test_a_task_without_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty_task.py").write_text(BROKEN)
    said = refused(capsys, "run", write(tmp_path / "a.yaml", task="empty_task.Nothing"), "--output", tmp_path / "out")
    assert "task Nothing: it has no samples" in said
    assert not (tmp_path / "out").exists()
