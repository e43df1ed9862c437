"""The table of what every method costs on every preset: the script, the stored files and the page."""

from __future__ import annotations

import json
from pathlib import Path

from scripts import load


def test_the_table_of_costs(tmp_path: Path) -> None:
    script = load("benchmarks/cost_table.py")
    assert {"STAR", "FastV", "DivPrune"} <= set(script.methods())
    asked = ["--models", "tiny", "--methods", "Random", "FlowCut", "--jobs", "1"]
    assert script.main([*asked, "--output", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "costs.json").read_text())
    rows = result["rows"]
    assert [row["method"] for row in rows] == ["dense", *["Random"] * 4, *["FlowCut"] * 4]
    assert len((tmp_path / "costs.csv").read_text().splitlines()) == 10
    page = (tmp_path / "costs.md").read_text()
    assert f"| Random | {100 * rows[1]['share']:.1f} % |" in page
    assert page.count("- FlowCut at ") == 4
    about = result["models"]["tiny"]
    assert (about["prompt"]["visual_tokens"], about["parameters"]) == (144, 1724832)
    assert about["processor_s"] > 0
    assert 2**27 < about["memory"] < 3 * 2**30
