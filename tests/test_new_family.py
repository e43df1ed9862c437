"""A family of one's own, by the steps of docs/add-a-family.md; and adapters stay small."""

from __future__ import annotations

import importlib
import re
import statistics
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from catalogue import ATTENTION, FAMILIES, Family, Items, Subject, subject
from invariants import LAYOUTS, check_identity, check_mask_oracle, check_rows_alone
from pages import ROOT, blocks, run_python, write_titled

import prunekit.adapter
from prunekit import Keep, Stage, prune
from prunekit.adapter import ModelAdapter, adapter_for, register_adapter, supported_models
from prunekit.errors import NeedsError, SiteError
from prunekit.models.tiny.builders import tiny_random
from prunekit.policies import STAR, CrossAttention, Random, SelfAttention

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PAGE = "docs/add-a-family.md"
INSIDE = Stage("vision.0", SelfAttention(), Keep(ratio=0.5)), Stage("decoder.2", CrossAttention(), Keep(ratio=0.25))
PLANS: dict[str, tuple[Items, int]] = {"star": ((STAR(keep=0.25),), 2), "inside-the-encoder": (INSIDE, 2)}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with the modules of the page, as if in a package of its own; what it registers ends with the test."""
    monkeypatch.setattr(prunekit.adapter, "_registered", {})
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    write_titled(PAGE)
    yield tmp_path
    for block in blocks(PAGE, "python"):
        sys.modules.pop(Path(block.title).stem if block.title else "", None)


@pytest.fixture
def janus(folder: Path) -> type[ModelAdapter]:
    """The page's adapter, not yet registered."""
    adapter: type[ModelAdapter] = importlib.import_module("janus_adapter").JanusAdapter
    return adapter


def the_line() -> Family:
    """The line that the page adds to tests/catalogue.py."""
    line = next(block.code for block in blocks(PAGE, "python") if block.skip)
    family: Family = eval(line, {"Family": Family})
    return family


@pytest.fixture(scope="module")
def listed() -> Iterator[None]:
    """The family registered, and in the catalogue."""
    namespace: dict[str, Any] = {}
    exec(next(block.code for block in blocks(PAGE, "python") if block.title), namespace)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prunekit.adapter, "_registered", {})
        patch.setitem(FAMILIES, "janus", the_line())
        register_adapter(namespace["JanusAdapter"])
        yield
    subject.cache_clear()


def model_of(attention: str) -> Subject:
    return subject("janus", attention)


# --- the page --------------------------------------------------------------------------------------------------------


def test_every_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_python(PAGE)
    shown = capsys.readouterr().out
    assert "ModelAdapter ['input', 'decoder.1', 'decoder.2', 'decoder.3']" in shown
    assert re.search(r"SelfAttention .*reads 'visual' of the vision encoder.*no adapter", shown)
    assert "['vision.0', 'vision.1', 'vision.2', 'connector', 'input', 'decoder.1', 'decoder.2', 'decoder.3']" in shown
    assert "28 of 28 tokens differ" in shown
    assert not {"janus", "paddleocr_vl"} & {name for each in prunekit.models.ADAPTERS for name in each.model_types}


def test_what_is_gained(janus: type[ModelAdapter]) -> None:
    model: Any
    model, make_inputs = tiny_random("janus")
    inputs = make_inputs(batch=2, images=(2, 1))
    general = adapter_for(model)
    assert type(general) is ModelAdapter
    with pytest.raises(NeedsError, match="no adapter"):
        prune(model, STAR(keep=0.25))
    with pytest.raises(SiteError, match=r"vision\.0"):
        prune(model, Stage("vision.0", Random(), Keep(ratio=0.5)))
    register_adapter(janus)
    own = adapter_for(model)
    assert own.sites() == ["vision.0", "vision.1", "vision.2", "connector", *general.sites()]
    assert own.tokens_per_image == 16
    assert own.grid == (4, 4)
    with torch.no_grad(), prune(model, STAR(keep=0.25)) as session:
        model.generate(**inputs, max_new_tokens=2, do_sample=False)
    assert [record.site for record in session.trace] == ["input", "decoder.2"]
    assert session.trace[-1].kept.shape == (2, 8)


@pytest.mark.parametrize("attention", ATTENTION)
def test_star_scores_are_the_attention_that_tokens_receive(listed: None, attention: str) -> None:
    """The encoder's own full map, where it makes one, averaged over heads and rows."""
    each = model_of(attention)
    inputs = each.make_inputs()
    with torch.no_grad(), prune(each.model, STAR(keep=0.25)) as session:
        each.model(**inputs)
    tower = model_of("eager").dense.model.vision_model
    with torch.no_grad():
        whole = tower(inputs["pixel_values"], output_attentions=True).attentions[-1]
    torch.testing.assert_close(session.trace[0].scores, whole.mean((1, 2)), atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("attention", ATTENTION)
def test_pruning_equals_masking(listed: None, attention: str, plan: str, layout: str) -> None:
    items, records = PLANS[plan]
    each = model_of(attention)
    inputs = each.make_inputs(**LAYOUTS[layout], seed=1)
    check_mask_oracle(each, items, inputs, records)
    if layout == "ragged":
        check_rows_alone(each, items, inputs, records)


@pytest.mark.parametrize("attention", ATTENTION)
def test_keeping_everything_changes_no_bit(listed: None, attention: str) -> None:
    each = model_of(attention)
    stages = [Stage(site, Random(), Keep(ratio=1.0)) for site in adapter_for(each.model).sites()]
    check_identity(each, tuple(stages), each.make_inputs(**LAYOUTS["ragged"]))


def test_the_line_of_the_catalogue_names_what_the_adapter_names(listed: None) -> None:
    line, model = the_line(), model_of("sdpa").model
    adapter = adapter_for(model)
    assert model.get_submodule(line.encoder_layers) is adapter.vision_layers
    assert model.get_submodule(line.decoder_layers) is adapter.decoder_layers
    assert line.tokens == adapter.image_ids + adapter.video_ids


def test_an_installed_package_registers_its_adapter(janus: type[ModelAdapter], folder: Path) -> None:
    assert "janus" not in supported_models()
    code = next(block.code for block in blocks(PAGE, "toml"))
    ((group, points),) = tomllib.loads(code)["project"]["entry-points"].items()
    about = folder / "my_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in points.items()))
    importlib.invalidate_caches()
    assert supported_models()["janus"] is janus
    assert type(adapter_for(tiny_random("janus")[0])) is janus


# --- adapters of prunekit --------------------------------------------------------------------------------------------


def test_adapters_are_small() -> None:
    sizes = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "models").glob("*.py")}
    assert statistics.median(sizes.values()) < 100, sizes
