"""Adapters from outside: registered by hand, and by the entry points of installed packages."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from catalogue import subject

from prunekit import Keep, Stage, adapter, prune
from prunekit.adapter import ModelAdapter, adapter_for, register_adapter, supported_models
from prunekit.errors import NeedsError, SiteError, UnsupportedModelError
from prunekit.models import LlavaAdapter
from prunekit.policies import Random, SelfAttention

HALF = Keep(ratio=0.5)
INPUT = Stage("input", Random(), HALF)


@pytest.fixture(autouse=True)
def registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Start from an empty register, and end as if nothing had been registered."""
    monkeypatch.setattr(adapter, "_registered", {})


def serves(family: str) -> type[ModelAdapter]:
    return type(adapter_for(subject(family, "sdpa").model))


class Fast(ModelAdapter):
    """FastVLM, whose convolutional encoder prunekit's own adapters do not describe."""

    model_types = ("fast_vlm",)
    connector = "multi_modal_projector"


def test_by_call() -> None:
    assert serves("fast_vlm") is ModelAdapter
    assert "fast_vlm" not in supported_models()
    assert register_adapter(Fast) is Fast
    assert serves("fast_vlm") is Fast
    assert supported_models()["fast_vlm"] is Fast
    assert serves("llava") is LlavaAdapter


@torch.no_grad()
def test_as_a_decorator_for_several_families() -> None:
    @register_adapter
    class Mine(ModelAdapter):
        model_types = ("fast_vlm", "perception_lm")

    assert isinstance(Mine, type)
    assert serves("fast_vlm") is serves("perception_lm") is Mine
    model = subject("fast_vlm", "sdpa")
    with prune(model.model, INPUT) as session:
        model.model(**model.make_inputs())
    assert type(session.adapter) is Mine
    assert [record.site for record in session.trace] == ["input"]


def test_a_family_of_prunekit_is_overridden_and_given_back() -> None:
    class Mine(LlavaAdapter):
        @property
        def vision_sites(self) -> int:
            return 0

    model = subject("llava", "sdpa").model
    for given in (Mine, LlavaAdapter, Mine, LlavaAdapter):  # the last call wins
        register_adapter(given)
        assert serves("llava") is given
    prune(model, Stage("vision.0", Random(), HALF))
    register_adapter(Mine)
    with pytest.raises(SiteError, match=r"'vision\.0'.*allowed are 'input' and 'decoder\.1' to 'decoder\.3'"):
        prune(model, Stage("vision.0", Random(), HALF))


def named(*names: Any) -> type[ModelAdapter]:
    return type("Mine", (ModelAdapter,), {"model_types": names})


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "no class": (lambda: serves, r"a subclass of ModelAdapter, given <function"),
    "another class": (lambda: torch.nn.Linear, r"a subclass of ModelAdapter, given <class 'torch.nn.*Linear'>"),
    "an instance": (lambda: adapter_for(subject("llava", "sdpa").model), r"a subclass of ModelAdapter, given <.*Llava"),
    "the base class": (lambda: ModelAdapter, r"ModelAdapter\.model_types is \(\).*for example \('my_vlm',\)"),
    "no families": (named, r"Mine\.model_types is \(\)"),
    "a bare name": (lambda: type("Mine", (ModelAdapter,), {"model_types": "my_vlm"}), r"is 'my_vlm'.*must be a tuple"),
    "no names": (lambda: named(3), r"is \(3,\).*config\.model_type"),
    "an empty name": (lambda: named(""), r"is \('',\)"),
}


@pytest.mark.parametrize(("make", "text"), WRONG.values(), ids=WRONG)
def test_what_is_no_adapter(make: Callable[[], Any], text: str) -> None:
    given = make()
    before = dict(supported_models())
    with pytest.raises(UnsupportedModelError, match=f"register_adapter.*{text}"):
        register_adapter(given)
    assert supported_models() == before


def installed(folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, *points: str) -> None:
    """Install a package `my-vlms 1.2` with one module and entry points such as `my_vlm = my_vlms:Adapter`."""
    (folder / "my_vlms.py").write_text(module)
    info = folder / "my_vlms-1.2.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-vlms\nVersion: 1.2\n")
    (info / "entry_points.txt").write_text("\n".join(["[prunekit.adapters]", *points]) + "\n")
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, "my_vlms", raising=False)


ADAPTER = """
from prunekit.adapter import ModelAdapter
class Adapter(ModelAdapter):
    model_types = ("fast_vlm", "llava")
"""


def test_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It wins over prunekit's own adapters, and what is registered by hand wins over it."""
    installed(tmp_path, monkeypatch, ADAPTER, "fast_vlm = my_vlms:Adapter")
    theirs = serves("fast_vlm")
    assert theirs.__module__ == "my_vlms"
    assert serves("llava") is supported_models()["llava"] is theirs
    register_adapter(LlavaAdapter)
    register_adapter(Fast)
    assert serves("llava") is LlavaAdapter
    assert serves("fast_vlm") is Fast


BROKEN = {
    "an import that fails": (
        "import nowhere_to_be_found",
        r"ModuleNotFoundError: No module named 'nowhere_to_be_found'",
    ),
    "an error at import": ("1 / 0", r"ZeroDivisionError: division by zero"),
    "no such class": ("", r"AttributeError: .*Adapter"),
    "no adapter": ("class Adapter: pass", r"subclass of ModelAdapter, given <class 'my_vlms\.Adapter'>"),
    "no family": ("from prunekit.adapter import ModelAdapter as Adapter", r"model_types is \(\)"),
}


@pytest.mark.parametrize(("module", "text"), BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("family", ["fast_vlm", "llava"])
@torch.no_grad()
def test_a_package_that_is_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, text: str, family: str
) -> None:
    """It is named when its family is asked for, known to prunekit or not, and no other family notices."""
    installed(tmp_path, monkeypatch, module, f"{family} = my_vlms:Adapter")
    who = rf"'{family}' comes from package my-vlms 1\.2 \(entry point my_vlms:Adapter.*{text}.*register_adapter"
    for _ in range(2):
        with pytest.raises(UnsupportedModelError, match=who) as caught:
            prune(subject(family, "sdpa").model, INPUT)
    assert caught.value.__cause__ is not None
    assert "qwen2_vl" in supported_models()
    for other in {"fast_vlm", "llava", "qwen2_vl"} - {family}:
        model = subject(other, "sdpa")
        with prune(model.model, INPUT) as session:
            model.model(**model.make_inputs())
        assert len(session.trace) == 1
    register_adapter(named(family))
    prune(subject(family, "sdpa").model, INPUT)


def test_an_adapter_without_the_encoder() -> None:
    """It names what is always there; policies that read the encoder are refused, with what is left."""
    register_adapter(Fast)
    model = subject("fast_vlm", "sdpa").model
    with pytest.raises(NeedsError, match=r"SelfAttention at 'input' reads 'visual'.*FastVlm.*allowed are policies"):
        prune(model, Stage("input", SelfAttention(), HALF))


PATHS = {
    "encoder": ("vision_towr", r"'vision_towr', but LlavaModel has no such module\. Did you mean 'vision_tower'\?"),
    "encoder_layers": ("encoder.layer", r"'encoder\.layer', but CLIPVision.* has no such .*mean 'encoder\.layers'\?"),
    "encoder_attention": ("attention", r"'attention', but CLIPEncoderLayer has no such module"),
    "connector": ("projector", r"'projector', but LlavaModel has no such .*mean 'multi_modal_projector'\?"),
}


@pytest.mark.parametrize("field", PATHS)
def test_a_path_that_leads_nowhere(field: str) -> None:
    path, text = PATHS[field]

    class Mine(ModelAdapter):
        model_types = ("llava",)
        encoder = "vision_tower"

    setattr(Mine, field, path)
    register_adapter(Mine)
    with pytest.raises(UnsupportedModelError, match=rf"Mine\.{field} is {text}"):
        prune(subject("llava", "sdpa").model, INPUT)
