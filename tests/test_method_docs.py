"""What is said of the methods: their references, their pages, and the golden cases that were met."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import pytest
import yaml
from pages import ROOT, blocks
from scripts import load

from prunekit import Method, Reference, policies
from prunekit.compatibility import buildable
from prunekit.evaluation.config import read_methods

script = load("docs/hooks/page_parts.py").script
facts: Any = script("docs/hooks/method_facts.py")
METHODS = {each.name: each for each in facts.methods()}
DATA = ROOT / "tests/parity/data"
STORED = json.loads((ROOT / "benchmarks/results/parity.json").read_text(encoding="utf-8"))["methods"]


@pytest.fixture(autouse=True)
def few_families(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Some families in place of all: the site tries the others."""
    monkeypatch.setattr(facts, "BUILDERS", ("llava", "qwen2_vl", "fast_vlm", "florence2"))
    facts.support.cache_clear()
    yield
    facts.support.cache_clear()


# --- references ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_reference(name: str) -> None:
    """It agrees with the docstring, with the fields, and with the golden cases."""
    cls, reference = METHODS[name].cls, METHODS[name].reference
    assert isinstance(reference, Reference)
    text = " ".join((cls.__doc__ or "").split())
    assert f"arXiv {reference.arxiv})" in text
    assert reference.venue is None or f"{reference.venue} {reference.year}, arXiv" in text
    assert reference.authors is None or f"({reference.authors}, " in text
    assert reference.code is None or reference.code.removeprefix("https://") in text
    assert (reference.commit is None) == (reference.unproven is not None) == (not METHODS[name].cases)
    if reference.commit is not None:
        assert reference.commit in {case["commit"][:7] for case in METHODS[name].cases.values()}
    hints = get_type_hints(cls)
    choices = next((get_args(hints[field]) for field in ("variant", "version") if field in hints), ())
    assert reference.variants == choices


def test_policies_of_a_paper_share_the_reference_of_its_method() -> None:
    published = {each.reference for each in METHODS.values()}
    of_policies = {getattr(policies, name).reference for name in policies.__all__ if name not in METHODS}
    assert None in of_policies
    assert of_policies - {None} < published


def test_references_are_no_arguments() -> None:
    """And do not hide those that are from the parser."""
    given = "{class_path: PyramidDrop, init_args: {keep: 0.25, drops: 2}}"
    assert read_methods([given]) == {"PyramidDrop": policies.PyramidDrop(0.25, drops=2)}
    assert all("reference" not in {field.name for field in fields(each.cls)} for each in METHODS.values())


def test_cited() -> None:
    assert Reference("A", "1234.56789", 2024, authors="B et al.", venue="C").cited == "B et al., C 2024"
    assert Reference("A", "1234.56789", 2024).cited == "arXiv 2024"
    assert Reference("A", "1234.56789", 2024).paper == "https://arxiv.org/abs/1234.56789"


# --- parity ----------------------------------------------------------------------------------------------------------


def test_stored_parity_is_that_of_the_cases_here() -> None:
    """Every case is stored, agrees, and nothing else is: `make parity` stores them."""
    assert {folder: set(cases) for folder, cases in STORED.items()} == {
        folder.name: {path.stem for path in folder.glob("*.npz")} for folder in DATA.iterdir()
    }
    for path in DATA.glob("*/*.npz"):
        stored = STORED[path.parent.name][path.stem]
        with np.load(path) as file:
            params = json.loads(str(file["params"]))
            outputs = [file[name].dtype.kind for name in file.files if name.startswith("out_")]
        assert stored["agrees"], path
        assert stored["commit"] == params["commit"], path
        assert stored["equal"] + stored["close"] + len(stored["skipped"]) == len(outputs), path
        assert stored["close"] == outputs.count("f"), path
        assert 0 <= stored["error"] <= 1e-4, path
        assert all(stored["skipped"].values()), path


def test_stored_variants_are_those_that_are_replayed() -> None:
    for name, each in METHODS.items():
        text = "".join(path.read_text() for path in (ROOT / "tests/replays").glob(f"{name.lower()}*.py"))
        released = {case["variant"] for case in each.cases.values()} == {"released"}
        assert released == ('variant="released"' in text), name
        assert released == ("released" in each.reference.variants), name
    assert {case["variant"] for case in METHODS["SparseVLM"].cases.values()} == {"v1", "plus"}


# --- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METHODS)
def test_page(name: str) -> None:
    page = load("docs/hooks/generate.py").expand(f"{{{{ method {name} }}}}", "../")
    sections = dict(re.findall(r"^## ([^\n]*)\n\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL))
    assert {"Idea", "Stages", "Parameters", "Parity", "In an experiment", "Where it runs"} <= set(sections)
    assert all(f"| `{field.name}` |" in sections["Parameters"] for field in fields(METHODS[name].example))
    assert sections["Parity"].count("\n| `") == len(METHODS[name].cases)
    assert "`llava`" in sections["Where it runs"]
    assert "](docs/" not in page
    (code,) = re.findall(r"```yaml\n(.*?)```", sections["In an experiment"], re.DOTALL)
    (given,) = yaml.safe_load(code)["methods"].values()
    assert read_methods([yaml.safe_dump(given)]) == {name: METHODS[name].example}


def test_what_is_seen_on_models() -> None:
    """Merging on the bundled model, and methods on families."""
    merging = {"MustDrop", "PruMerge", "SparseVLM", "ToMe", "VScan", "VisionZip"}
    assert {name for name, each in METHODS.items() if each.merges} == merging
    served = {family: answers for families, answers in facts.support() for family in families}
    assert served.keys() == {"llava", "qwen2_vl", "fast_vlm"}  # Florence-2 is an encoder-decoder
    assert all(answer.sites for answer in served["llava"].values())
    assert served["qwen2_vl"]["STAR"].sites == ("input", "decoder.2")
    assert "no [CLS] token" in served["qwen2_vl"]["FasterVLM"].reason
    assert not served["fast_vlm"]["STAR"].sites


def test_what_the_question_has_a_say_in() -> None:
    aware = {name for name, each in METHODS.items() if each.text_aware}
    assert aware == {
        *("CDPruner", "DART", "FastV", "FitPrune", "MustDrop", "PyramidDrop", "STAR", "SparseVLM", "VScan")
    }


@pytest.mark.parametrize("part", ["comparison", "matrix", "refusals", "agreement", "cases"])
def test_tables_are_whole(part: str) -> None:
    text = load("docs/hooks/generate.py").methods(part)
    for block in re.findall(r"(?:^\|.*\|$\n?)+", text, re.MULTILINE):
        assert len({line.count(" | ") for line in block.splitlines()}) == 1, block


def test_results_of_a_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its rows of a stored run of all methods; nothing where none is stored."""
    pages: Any = script("docs/hooks/method_results.py")
    stored = json.loads((ROOT / "benchmarks/results/quickstart.json").read_text(encoding="utf-8"))
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    assert pages.results("FastV") == ""
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/zoo.json").write_text(json.dumps(stored))
    lines = pages.results("FastV").splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        "| dense",
        *["| FastV"] * len(stored["experiment"]["budgets"]),
    ]
    assert pages.results("PruMerge") == ""


def test_cost_of_scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `benchmarks/scoring.py` writes it; nothing where nothing is stored."""
    pages: Any = script("docs/hooks/method_results.py")
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    assert pages.scoring("FastV") == ""
    timed = {"method": "FastV", "visual_tokens": 576, "macs": 25e7, "share_of_dense": 0.0125, "ms": 3.21}
    refused = {"method": "FastV", "visual_tokens": 2880, "macs": 1e9, "share_of_dense": 0.05, "time_refused": "why"}
    stored = {"rows": [timed, refused, timed | {"method": "VTW"}], "hardware": {"cpu": "a CPU"}, "threads": 2}
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    (tmp_path / "benchmarks/results/scoring.json").write_text(json.dumps(stored))
    _, _, *rows, _, where = pages.scoring("FastV").splitlines()
    assert rows == ["| 576 | 0.25 G | 1.25 % | 3.2 |", "| 2880 | 1.00 G | 5.00 % |  |"]
    assert where.startswith("a CPU, 2 threads")
    assert pages.scoring("STAR") == ""
    _, _, *rows, _, _ = pages.scoring_of_all().splitlines()
    assert rows == [
        "| FastV | 0.25 G | 1.25 % | 3.2 | 1.00 G | 5.00 % |  |",
        "| VTW | 0.25 G | 1.25 % | 3.2 |  |  |  |",
    ]


def test_every_combinator_is_shown_in_both_languages() -> None:
    classes = {name: getattr(policies, name) for name in policies.__all__}
    made = {name for name, cls in classes.items() if not buildable(cls)}
    for kind in ("python", "yaml"):
        text = "".join(block.code for block in blocks("docs/compose.md", kind))
        assert all(re.search(rf"\b{name}\b", text) for name in made), kind
    assert {name for name in made if issubclass(classes[name], Method)} == {"Sequential"}
