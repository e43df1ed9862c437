"""Importing: `prunekit` stays light, and no module needs another one to be imported before it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import prunekit.costs

MODULES = sorted(f"prunekit.costs.{file.stem}" for file in Path(prunekit.costs.__file__).parent.glob("[a-z]*.py"))
FRONTS = ("prunekit.closed_form", "prunekit.conventions", "prunekit.flops", "prunekit.presets")

FRESH = """
import importlib, sys
for wanted in sys.argv[1:]:
    for name in [name for name in sys.modules if name.partition(".")[0] == "prunekit"]:
        del sys.modules[name]
    importlib.import_module(wanted)
"""


def run(program: str, *words: str) -> str:
    done = subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_pruning_needs_no_tracer() -> None:
    heavy = ("fvcore", "pytorch_lightning", "matplotlib", "plotly", "jsonargparse")
    loaded = run(f"import sys, prunekit; print([name for name in {heavy} if name in sys.modules])")
    assert loaded.strip() == "[]"


def test_modules_import_in_any_order() -> None:
    assert len(MODULES) > 10
    run(FRESH, *MODULES, *FRONTS)


def test_names_of_the_package_are_the_public_ones() -> None:
    assert prunekit.costs.cost is prunekit.cost
    assert {name: getattr(prunekit.costs, name).__name__ for name in prunekit.costs.__all__} == {
        name: name for name in ("Costs", "MethodCost", "cost")
    }
