"""What `make matrix` reads from a report and shows, and that the stored results fit what pyproject.toml asks for."""

from __future__ import annotations

import json
from pathlib import Path

from matrix import RESULTS, order, read, requirement, table
from packaging.requirements import Requirement
from packaging.version import Version

REPORT = """<testsuites><testsuite>
<testcase classname="tests.contract.test_families" name="test_one[eager-llava-single-star]" />
<testcase classname="tests.contract.test_families" name="test_one[sdpa-llava-single-star]"><failure /></testcase>
<testcase classname="tests.contract.test_families" name="test_one[llava_next]"><error /></testcase>
<testcase classname="tests.contract.test_families" name="test_one[molmo2]"><skipped /></testcase>
<testcase classname="tests.contract.test_calls" name="test_two" />
</testsuite></testsuites>"""


def test_a_report_is_counted_by_family(tmp_path: Path) -> None:
    path = tmp_path / "report.xml"
    path.write_text(REPORT, encoding="utf-8")
    result = read(path)
    assert {key: result[key] for key in ("passed", "failed", "skipped")} == {"passed": 2, "failed": 2, "skipped": 1}
    assert result["failures"] == [
        "tests.contract.test_families::test_one[sdpa-llava-single-star]",
        "tests.contract.test_families::test_one[llava_next]",
    ]
    assert result["families"] == {
        "llava": {"passed": 1, "failed": 1, "skipped": 0},
        "llava_next": {"passed": 0, "failed": 1, "skipped": 0},
        "molmo2": {"passed": 0, "failed": 0, "skipped": 1},
    }
    *_, newer, older = table({"5.9.0": result, "5.10.0": result}).splitlines()
    assert newer == "| 5.10.0 | 2 | 2 | 1 | `llava`, `llava_next` | `molmo2` |"
    assert older.startswith("| 5.9.0 |")


def test_every_admitted_release_that_was_tested_passes() -> None:
    """And the oldest one that pyproject.toml admits was tested."""
    results = json.loads(RESULTS.read_text(encoding="utf-8"))
    wanted = Requirement(requirement()).specifier
    admitted = sorted((release for release in results if wanted.contains(release)), key=order)
    assert [release for release in admitted if results[release]["failed"]] == []
    oldest = next(Version(each.version) for each in wanted if each.operator == ">=")
    assert Version(admitted[0]) == oldest
