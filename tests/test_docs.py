"""The documentation says what is true: code runs, experiments parse, commands and links exist, names are described."""

from __future__ import annotations

import importlib
import importlib.util
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import NAMES, ROOT, blocks, pages_with, run_python, write_titled
from scripts import load

import prunekit
import prunekit.adapter
import prunekit.policies
from prunekit.models import ADAPTERS
from prunekit.scenes import scene

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory of its own, where pages find `photo.jpg` and modules that they define."""
    monkeypatch.setattr(prunekit.adapter, "_registered", {})  # adapters of a page end with it
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    scene(0, split="test", seed=0).pil().save("photo.jpg")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


# --- code ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages_with("python"))
def test_python_runs(page: str, folder: Path) -> None:
    run_python(page)


def test_readme_is_as_short_as_promised() -> None:
    use, policy = blocks("README.md", "python")[:2]
    assert len([line for line in use.code.splitlines() if line.strip()]) <= 10
    assert len([line for line in policy.code.splitlines() if line.strip()]) <= 15


# --- experiments -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", pages_with("yaml"))
def test_experiments_parse(page: str, folder: Path) -> None:
    """Whole experiments as they are; fragments put into a small experiment."""
    from prunekit.evaluation import load_experiment

    write_titled(page)
    for block in blocks(page, "yaml"):
        if block.skip:
            print(f"{block.where} is skipped: {block.skip}")
            continue
        whole = {"methods": {"Random": "Random"}, "task": "Scenes"} | yaml.safe_load(block.code)
        path = folder / (block.title or "fragment.yaml")
        if not block.title:
            path.write_text(yaml.safe_dump(whole), encoding="utf-8")
        experiment = load_experiment(path)
        assert set(experiment.methods) == set(whole["methods"]), block.where


@pytest.mark.parametrize(
    ("page", "file"), [("docs/first-policy.md", "loudest.yaml"), ("docs/experiments.md", "my_experiment.yaml")]
)
def test_experiments_run(page: str, file: str, folder: Path) -> None:
    from prunekit.cli import main

    write_titled(page)
    small = yaml.safe_load(Path(file).read_text()) | {"overlay_samples": 0, "timing_samples": 0, "batch_size": 8}
    small["methods"] = dict([*small["methods"].items()][-1:])
    if page == "docs/first-policy.md":
        small["task"]["init_args"]["scenes"] = 1
    Path(file).write_text(yaml.safe_dump(small))
    assert main(["run", file, "--output", "run"]) == 0
    result = json.loads(Path("run/result.json").read_text(encoding="utf-8"))
    assert {row["name"] for row in result["methods"]} == {"dense", *small["methods"]}


# --- commands --------------------------------------------------------------------------------------------------------


def commands() -> list[tuple[str, str]]:
    found = []
    for page in NAMES:
        for block in blocks(page, "console"):
            lines = [line for line in block.code.splitlines() if line.startswith("$ ")]
            found += [(f"{page}: {line[2:]}", line[2:]) for line in lines]
    return found


@pytest.mark.parametrize("command", [c for _, c in commands()], ids=[name for name, _ in commands()])
def test_command_exists(command: str) -> None:
    program, *words = shlex.split(command)
    targets = re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    if program == "make":
        assert words, command
        assert words[0] in targets
    elif program == "prunekit":
        check_prunekit(words)
    elif program == "python":
        assert (ROOT / words[0]).is_file(), command
    else:
        assert program in ("pip", "git", "cd"), command


def check_prunekit(words: list[str]) -> None:
    from prunekit.cli import main
    from prunekit.evaluation.config import shipped_experiments

    if words[0] == "run":
        titles = {block.title for page in NAMES for block in blocks(page, "yaml")}
        name = words[1]
        assert name in shipped_experiments() or name in titles or (ROOT / name).is_file() or name == "my.yaml"
    elif words == ["--help"]:
        with pytest.raises(SystemExit, match="0"):
            main(words)
    else:  # quick enough to be run
        assert main(words) == 0


def test_mentioned_make_targets_exist() -> None:
    targets = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    for page in [*NAMES, "CONTRIBUTING.md"]:
        mentioned = re.findall(r"`make ([a-z-]+)", (ROOT / page).read_text(encoding="utf-8"))
        assert set(mentioned) <= targets, page


def test_mentioned_paths_exist() -> None:
    """Paths in the tables and texts of the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tests|docs|benchmarks|models|policies)/[\w./-]*)`", text):
        assert (ROOT / path).exists(), path


# --- links and names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*NAMES, "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links(page: str) -> None:
    text = re.sub(r"^```.*?^```$", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for target in LINK.findall(text):
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        if file.parent == ROOT / "docs/methods":  # made when the site is built
            assert file.stem in [name.lower() for name in prunekit.policies.__all__], f"{page} links to {target}"
            continue
        assert file.exists(), f"{page} links to {target}"
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file), f"{page} links to {target}"


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_policies_are_in_the_table() -> None:
    generate, parts = load("docs/hooks/generate.py"), ("named_methods", "elementary", "combinators")
    table = "\n".join(map(generate.methods, parts))
    rows = [table.count(f"| [`{name}`]") for name in prunekit.policies.__all__]
    assert rows == [1] * len(rows), "each policy has one row in one table of docs/policies.md"
    page = (ROOT / "docs/policies.md").read_text(encoding="utf-8")
    assert all(f"{{{{ methods {part} }}}}" in page for part in parts)


@cache
def generated() -> Any:
    """What the page of families is made of: it takes some seconds."""
    return load("docs/hooks/families.py")


@pytest.mark.slow
def test_families_are_on_their_page() -> None:
    """Each has a row and a section; no example is given for a family that is none."""
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    assert all(f"{{{{ families {part} }}}}" in page for part in ("matrix", "others", "reasons", "refused", "sections"))
    families = generated()
    sections = families.sections()
    known = [name for adapter in ADAPTERS for name in adapter.model_types]
    assert sorted(name for row in families.matrix() for name in re.findall(r"`(\w+)`", row[0])) == sorted(known)
    assert all(f"{{ #{adapter.model_types[0]} }}" in sections for adapter in ADAPTERS)
    assert set(families.RELEASED) <= set(known)
    others = [row[0] for row in families.others()]
    assert {"`aria`", "`janus`"} <= set(others)
    assert any(reason.startswith("- `blip-2`, `generate`: ") for reason in families.reasons().splitlines())
    reasons = {row[0]: row[-1] for row in families.refused()}
    assert reasons["`mllama`"].startswith("Its decoder looks at images by cross-attention")
    assert reasons["`florence2`"].startswith("It is an encoder-decoder model")
    assert not {f"`{name}`" for name in known} & {*others, *reasons}


def test_the_list_of_models_agrees_with_the_table() -> None:
    from prunekit.listing import entries

    matrix = generated().matrix()
    rows = {name: row for row in matrix for name in re.findall(r"`(\w+)`", row[0])}
    *listed, (last, _) = entries("models")
    assert {name for name, _ in listed} == set(rows)
    assert last == "(others)"
    for name, offers in listed:
        _, _, cls, encoder, _, _, video, _, inside, _ = rows[name]
        assert ("[CLS]" in offers, "encoder attention" in offers) == (cls != "no", encoder != "no"), name
        assert ("videos" in offers, "vision.<i>" in offers) == (video != "no", inside != "no"), name


def test_unknown_parts_stop_the_build() -> None:
    generate = load("docs/hooks/generate.py")
    with pytest.raises(KeyError, match="known parts"):
        generate.expand("{{ polices }}")


# --- the site --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_site(tmp_path: Path) -> None:
    """The site builds without a warning, describes every public name, and needs no network to be read."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {page: page.read_text(encoding="utf-8") for page in tmp_path.rglob("*.html")}
    assert not undescribed(tmp_path), f"{undescribed(tmp_path)} are not on the API pages"
    for page, html in pages.items():
        assert not re.search(r"\{\{ \w+", html), f"{page} holds a mark that was not replaced"
        loaded = re.findall(r'<(?:script|img|iframe)[^>]+src="(https?:[^"]+)"', html)
        loaded += re.findall(r'<link[^>]+rel="(?:stylesheet|preconnect|preload)"[^>]+href="(https?:[^"]+)"', html)
        assert not loaded, f"{page} loads {loaded}"


def undescribed(site: Path) -> list[str]:
    """Public names without an entry on the API pages."""
    html = "".join(page.read_text(encoding="utf-8") for page in site.glob("api/*/index.html"))
    html += (site / "errors/index.html").read_text(encoding="utf-8")
    names = list(prunekit.__all__)
    for module in ("policies", "errors", "budget", "flops", "adapter", "evaluation"):
        names += [f"{module}.{name}" for name in importlib.import_module(f"prunekit.{module}").__all__]
    return [name for name in names if f'id="prunekit.{name}"' not in html]
