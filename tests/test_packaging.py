"""The mapped folders are one package: in the checkout, in the wheel, and never under a second name."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = SETTINGS["package-dir"]
LINKED = {package: folder for package, folder in FOLDERS.items() if package != "prunekit"}


def shipped_files() -> set[str]:
    """Name every file of the mapped folders as an installed package has it."""
    files = set()
    for package, folder in FOLDERS.items():
        for parent, _, names in os.walk(ROOT / folder):
            inside = Path(*package.split("."), os.path.relpath(parent, ROOT / folder))
            files |= {(inside / name).as_posix() for name in names if not name.endswith(".pyc")}
    return files


def run(*command: str | Path, cwd: Path, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    environment |= {"COLUMNS": "120"} | ({"PYTHONPATH": str(path)} if path else {})
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build a wheel from a copy of the checkout, where nothing of an earlier build can slip in."""
    source = tmp_path_factory.mktemp("source")
    caches = shutil.ignore_patterns("__pycache__")
    for folder in FOLDERS.values():
        shutil.copytree(ROOT / folder, source / folder, symlinks=True, ignore=caches)
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source / name)
    built = run(sys.executable, "-m", "build", "--wheel", "--no-isolation", cwd=source)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = (source / "dist").glob("*.whl")
    return file


def test_every_folder_with_an_init_is_listed() -> None:
    found = {file.removesuffix("/__init__.py") for file in shipped_files() if file.endswith("/__init__.py")}
    assert sorted(name.replace("/", ".") for name in found) == sorted(SETTINGS["packages"])


@pytest.mark.parametrize("package", LINKED)
def test_links_show_the_mapped_folders(package: str) -> None:
    assert ROOT.joinpath(*package.split(".")).resolve() == ROOT / LINKED[package]


@pytest.mark.parametrize("package", LINKED)
def test_a_second_name_is_refused(package: str) -> None:
    folder = ROOT / LINKED[package]
    outcome = run(sys.executable, "-c", f"import {folder.name}", cwd=folder.parent)
    assert outcome.returncode == 1
    assert f"ImportError: import {package}:" in outcome.stderr


def test_the_wheel_has_every_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == shipped_files()


def test_the_wheel_works_from_any_folder(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip = (sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--target", site)
    installed = run(*pip, wheel, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr

    show = (
        "import prunekit.models, prunekit.policies as p; from prunekit.cli import main;"
        "print(prunekit.models.__file__, p.__file__); main(['list', 'policies'])"
    )
    shown = run(sys.executable, "-c", show, cwd=tmp_path, path=site)
    assert shown.returncode == 0, shown.stderr
    files, *listed = shown.stdout.splitlines()
    assert files.split() == [str(site / f"prunekit/{n}/__init__.py") for n in ("models", "policies")]
    assert "STAR" in "".join(listed)

    small = ("--task.init_args.scenes", "1", "--budgets", "[0.5]", "--timing_samples", "0", "--overlay_samples", "1")
    command = (site / "bin" / "prunekit", "run", "quickstart", "--output", tmp_path / "out", *small)
    ran = run(*command, cwd=tmp_path, path=site)
    assert ran.returncode == 0, ran.stderr
    assert {"result.json", "report.html", "pareto.png"} <= {file.name for file in (tmp_path / "out").iterdir()}
