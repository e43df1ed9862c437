"""What the overhead benchmark stored is what its page shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from scripts import BENCHMARKS


def test_results_are_written_into_the_page(tmp_path: Path, modules: Any) -> None:
    script = modules("update_overhead")
    stored = (BENCHMARKS / "results" / "overhead.json").read_text(encoding="utf-8")
    (tmp_path / "run.json").write_text(stored, encoding="utf-8")
    page = tmp_path / "benchmarks" / "README.md"
    page.parent.mkdir()
    page.write_text(f"before\n{script.BEGIN}\nold\n{script.END}\nafter\n", encoding="utf-8")
    for _ in range(2):
        script.update(tmp_path / "run.json", tmp_path)
    text = page.read_text(encoding="utf-8")
    assert text == f"before\n{script.BEGIN}\n{script.section(json.loads(stored))}\n{script.END}\nafter\n"
    assert (tmp_path / "benchmarks" / "results" / "overhead.json").read_text(encoding="utf-8") == stored


def test_more_visual_tokens_may_be_a_run_of_their_own(tmp_path: Path, modules: Any) -> None:
    script = modules("update_overhead")
    stored = json.loads((BENCHMARKS / "results" / "overhead.json").read_text(encoding="utf-8"))
    other = {
        **stored,
        "time": "2001-02-03T00:00:00+00:00",
        "scaling": {**stored["scaling"], "memory": {"tokens": [], "growth": {"pruned": 1.5}}},
    }
    for name, content in (("run", {**stored, "scaling": {}}), ("more", other)):
        (tmp_path / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    page = tmp_path / "benchmarks" / "README.md"
    page.parent.mkdir()
    page.write_text(f"{script.BEGIN}{script.END}", encoding="utf-8")
    script.update(tmp_path / "run.json", tmp_path, more=tmp_path / "more.json")
    text = page.read_text(encoding="utf-8")
    assert "to the power 1.50 (pruned)" in text
    assert "A run of its own" in text
    assert "2001-02-03" in text


def test_the_page_shows_the_stored_results(modules: Any) -> None:
    script = modules("update_overhead")
    stored = json.loads((BENCHMARKS / "results" / "overhead.json").read_text(encoding="utf-8"))
    shown = (BENCHMARKS / "README.md").read_text(encoding="utf-8").split(script.BEGIN)[1].split(script.END)[0]
    assert shown.strip() == script.section(stored)
