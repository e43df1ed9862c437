"""The table of what every method costs on every preset: the script, the stored files and the page."""

from __future__ import annotations

import json
from pathlib import Path

from scripts import ROOT, load

from prunekit.presets import presets


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
    assert about["memory"] > 2**27


def test_the_stored_table_is_what_the_script_writes_and_counts(tmp_path: Path) -> None:
    """The files agree with each other, cover all presets and methods, and a recount of some rows gives the same."""
    script, folder = load("benchmarks/cost_table.py"), ROOT / "benchmarks/results/costs"
    result = json.loads((folder / "costs.json").read_text())
    script.write(result, tmp_path)
    for name in ("costs.json", "costs.csv", "costs.md"):
        assert (tmp_path / name).read_text() == (folder / name).read_text()
    assert list(result["models"]) == list(presets())
    assert result["config"]["methods"] == script.methods()
    for model in ("llava-1.5-7b", "qwen2.5-vl-3b"):
        names = ("STAR", "DivPrune", "FastV")
        own = [row for row in result["rows"] if row["model"] == model and row["method"] in ("dense", *names)]
        about, rows = script.counted(model, names)
        assert json.loads(json.dumps(rows)) == sorted(own, key=lambda row: ("dense", *names).index(row["method"]))
        assert {name: result["models"][model][name] for name in about} == json.loads(json.dumps(about))


def test_the_pages_show_the_stored_table() -> None:
    result = json.loads((ROOT / "benchmarks/results/costs/costs.json").read_text())
    expand = load("docs/hooks/generate.py").expand
    shown = {name: expand((ROOT / "docs" / name).read_text()) for name in ("costs.md", "presets.md")}
    assert load("benchmarks/cost_table.py").section(result) in shown["costs.md"]
    for name, about in result["models"].items():
        line = next(line for line in shown["presets.md"].splitlines() if line.startswith(f"| `{name}`"))
        assert f"| {about['parameters']:,} |" in line
        assert line.endswith(f"| {about['prompt']['visual_tokens']} |")
        assert f"- `{name}`. {presets()[name].source}" in shown["presets.md"]
