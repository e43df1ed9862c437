"""The table of results in README is written by a script from a stored run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from scripts import ROOT, load


def example_result() -> dict[str, Any]:
    row = {
        "name": "dense",
        "budget": None,
        "accuracy": 0.9375,
        "interval": [0.92, 0.95],
        "questions": 1000,
        "average_visual_tokens": 144.0,
        "final_visual_tokens": 144.0,
        "macs": {"vision": 10, "prefill": 90},
        "flops": 200_000_000,
        "prefill_ms": 12.34,
        "families": {},
        "reason": None,
    }
    never = {**row, "name": "FastV", "budget": 0.05, "accuracy": None, "reason": "its range is 18.9 to 144"}
    provenance = {"hardware": {"device": "cpu", "processor": "A | B", "cores": 2, "threads": 2}, "seed": 0,
                  "versions": {"python": "3.11", "torch": "2"}, "date": "2026-01-02T03:04:05"}  # fmt: skip
    task = {"name": "Scenes", "version": 1, "samples": 1000, "families": []}
    return {"methods": [row, never], "provenance": provenance, "task": task, "model": {}, "notes": {}}


def test_results_are_written_into_the_readme(tmp_path: Path) -> None:
    script = load("benchmarks/update_readme.py")
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text(json.dumps(example_result()), encoding="utf-8")
    (run / "pareto.png").write_bytes(b"png")
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n", encoding="utf-8")
    script.update(run, tmp_path)
    once = readme.read_text(encoding="utf-8")
    script.update(run, tmp_path)
    assert once == readme.read_text(encoding="utf-8")
    assert once.startswith("before\n")
    assert once.endswith("after\n")
    assert "old" not in once
    assert "| dense | all | 144.0 | 144.0 | 93.8 [92.0, 95.0] | 200 M | 12.3 |" in once
    assert "| FastV | 5 % | not reachable |" in once
    assert "its range is 18.9 to 144" in once
    assert (tmp_path / "docs/images/quickstart.png").read_bytes() == b"png"
    assert json.loads((tmp_path / "benchmarks/results/quickstart.json").read_text()) == example_result()


def test_readme_shows_the_stored_results() -> None:
    stored = ROOT / "benchmarks/results/quickstart.json"
    script = load("benchmarks/update_readme.py")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = text.split(script.BEGIN)[1].split(script.END)[0].strip()
    assert shown == script.section(json.loads(stored.read_text(encoding="utf-8")), "docs/images/quickstart.png")
    assert (ROOT / "docs/images/quickstart.png").is_file()


def test_every_method_of_the_zoo_was_run() -> None:
    stored = json.loads((ROOT / "benchmarks/results/zoo.json").read_text(encoding="utf-8"))
    shipped = yaml.safe_load((ROOT / "benchmarks/experiments/zoo.yaml").read_text(encoding="utf-8"))
    assert {row["name"] for row in stored["methods"]} == {"dense", *shipped["methods"]}
    budgets = {name: {row["budget"] for row in stored["methods"] if row["name"] == name} for name in shipped["methods"]}
    expected = {name: {None} if name in shipped["fixed"] else {*shipped["budgets"]} for name in shipped["methods"]}
    assert budgets == expected
    text = load("benchmarks/update_readme.py").section(stored, "docs/images/zoo.png", "zoo")
    assert "prunekit run zoo" in text
    assert (ROOT / "docs/images/zoo.png").is_file()
