"""The contract tests on several releases of transformers, each in an environment of its own.

    make matrix
    make matrix RELEASES="5.20.2 newest" ARGS="--select 'llava or qwen2_vl' --processes 1"

An environment, build/matrix/<release>, sees all packages of the environment that this script runs in, torch included;
the release of transformers is installed into it, and what that needs in another version than is there. The counts go to
benchmarks/results/transformers.json, from which `section` makes the table of docs/transformers-versions.md; those of a
choice of tests (`--select`) are shown and not stored.
"""

from __future__ import annotations

import argparse
import json
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections import Counter
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "matrix"
RESULTS = ROOT / "benchmarks" / "results" / "transformers.json"
TESTS = ("tests/contract", "tests/test_upstream.py", "tests/test_upstream_recurrent.py", "tests/test_patch_maps.py")
OUTCOMES = ("passed", "failed", "skipped")
SHOWN = 20  # failed tests that are stored by name

Result = dict[str, Any]


def main(arguments: list[str] | None = None) -> int:
    """Test every release; returns 1 if a test failed."""
    parser = argparse.ArgumentParser(prog="make matrix", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("releases", nargs="+", help="as in 5.20.2; newest: the newest that pyproject.toml admits")
    parser.add_argument("--select", metavar="EXPRESSION", help="only the tests that pytest -k chooses; stores nothing")
    parser.add_argument("--processes", default="auto", help="how many processes share the tests of a release")
    options = parser.parse_args(arguments)
    results: dict[str, Result] = {}
    failed = False
    for name in options.releases:
        python = environment(name)
        if python is None:
            failed = True
            continue
        release = installed(python)
        print(f"transformers {release} ...", flush=True)
        results[release] = run(release, python, options)
        print(f"    {counts(results[release])}", *results[release]["failures"], sep="\n    ", flush=True)
        if options.select is None:
            store(results)  # after every release, so that an interrupted run leaves something
    print("\n" + table(results))
    return int(failed or any(result["failed"] for result in results.values()))


# --- environments ----------------------------------------------------------------------------------------------------


def environment(name: str) -> Path | None:
    """The interpreter of the environment for a release, made where it is missing; None if pip cannot install it."""
    folder = FOLDER / name
    python = folder / "bin" / "python"
    if python.exists() and name != "newest":
        return python
    if not python.exists():
        venv.create(folder, symlinks=True)
        around = Path(sysconfig.get_path("purelib"))
        inside = folder / around.relative_to(sys.prefix)
        (inside / "around.pth").write_text(f"import site; site.addsitedir({str(around)!r})\n", encoding="utf-8")
    wanted = requirement() if name == "newest" else f"transformers=={name}"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--upgrade", wanted]
    if subprocess.run(pip).returncode:
        shutil.rmtree(folder)  # a later call tries again
        print(f"{wanted} is left out: pip cannot install it for Python {platform.python_version()}.", flush=True)
        return None
    return python


def requirement() -> str:
    """What pyproject.toml says of transformers."""
    found = re.search(r'"(transformers[<>=~][^"]*)"', (ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert found is not None
    return found[1]


def installed(python: Path) -> str:
    """The release of transformers that an interpreter finds."""
    command = [str(python), "-c", "from importlib.metadata import version; print(version('transformers'))"]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


# --- tests -----------------------------------------------------------------------------------------------------------


def run(release: str, python: Path, options: argparse.Namespace) -> Result:
    """Run the contract tests of one release; what pytest prints stays in the environment's folder."""
    report, log = python.parents[1] / "report.xml", python.parents[1] / "output.txt"
    report.unlink(missing_ok=True)
    command = [str(python), "-m", "pytest", "-q", "-n", str(options.processes), "--maxprocesses", "8", *TESTS]
    command += ["-p", "no:cacheprovider", f"--junit-xml={report}", *(["-k", options.select] if options.select else [])]
    with log.open("w", encoding="utf-8") as output:
        done = subprocess.run(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
    if done.returncode not in (0, 1) or not report.exists():
        last = "".join(log.read_text(encoding="utf-8").splitlines(keepends=True)[-30:])
        raise SystemExit(f"{last}\nThe tests could not be run with transformers {release}; see {log}.")
    return read(report) | {
        "python": platform.python_version(),
        "torch": version("torch"),
        "date": datetime.now(timezone.utc).date().isoformat(),
    }


def read(report: Path) -> Result:
    """Counts of a report, over all tests and by family; a test belongs to the family that is among its parameters."""
    from catalogue import FAMILIES

    families: dict[str, Counter[str]] = {name: Counter() for name in FAMILIES}
    total, failures = Counter[str](), []
    for case in ElementTree.parse(report).iter("testcase"):
        found = {child.tag for child in case}
        outcome = "failed" if found & {"failure", "error"} else "skipped" if "skipped" in found else "passed"
        total[outcome] += 1
        name = case.get("name", "")
        if outcome == "failed":
            failures.append(f"{case.get('classname', '')}::{name}")
        for part in set(re.split(r"[\[\]-]", name)) & families.keys():
            families[part][outcome] += 1
    seen = {name: {each: found[each] for each in OUTCOMES} for name, found in families.items() if found}
    return {each: total[each] for each in OUTCOMES} | {"failures": failures[:SHOWN], "families": seen}


# --- tables ----------------------------------------------------------------------------------------------------------


def counts(result: Result) -> str:
    """One line on a release."""
    return ", ".join(f"{result[each]:,} {each}" for each in OUTCOMES)


def table(results: dict[str, Result]) -> str:
    """Releases and what came out, newest first, in Markdown."""
    head = ["Release", "Passed", "Failed", "Skipped", "Families that fail", "Families it does not have"]
    rows = [head, ["---", *["---:"] * 3, "---", "---"]]
    for release in sorted(results, key=order, reverse=True):
        result = results[release]
        families = result["families"].items()
        failing = [f"`{name}`" for name, found in families if found["failed"]]
        absent = [f"`{name}`" for name, found in families if found["skipped"] and not found["passed"] + found["failed"]]
        cells = [f"{result[each]:,}" for each in OUTCOMES]
        rows.append([release, *cells, ", ".join(failing) or "none", ", ".join(absent) or "none"])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def order(release: str) -> list[int]:
    """A key that sorts releases by age."""
    return [int(part) for part in re.findall(r"\d+", release)]


def section() -> str:
    """The stored table, and the sentences on where it comes from: a part of the documentation."""
    results: dict[str, Result] = json.loads(RESULTS.read_text(encoding="utf-8"))
    setups = {
        f"Python {result['python']} and torch {result['torch']} ({result['date']})" for result in results.values()
    }
    return (
        f"prunekit asks for `{requirement()}`. `make matrix` tested these releases, with"
        f" {' and '.join(sorted(setups))}:\n\n{table(results)}"
    )


def store(results: dict[str, Result]) -> None:
    """Put results beside those of releases that were tested before."""
    before = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    merged = before | results
    ordered = {release: merged[release] for release in sorted(merged, key=order)}
    RESULTS.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
