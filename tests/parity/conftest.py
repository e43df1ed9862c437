"""What came of the golden cases: a table at the end of the run, and JSON for the documentation."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import torch

import prunekit.policies
from prunekit.plan import Method


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """With xdist, too: reports of all workers arrive here."""
    methods = by_method(terminalreporter)
    if not methods:
        return
    terminalreporter.section("parity with released code")
    for name, cases in methods.items():
        total = {key: sum(case[key] for case in cases.values()) for key in ("agrees", "equal", "close")}
        words = [f"{total['agrees']} of {len(cases)} cases agree", f"{total['equal']} outputs equal"]
        if total["close"]:
            words.append(f"{total['close']} within {max(case['error'] for case in cases.values()):.1e}")
        if skipped := sum(len(case["skipped"]) for case in cases.values()):
            words.append(f"{skipped} skipped")
        terminalreporter.write_line(f"{name:16} {', '.join(words)}")
    target = config.getoption("--parity-json", default=None)
    if target:
        found = {"torch": torch.__version__.partition("+")[0], "methods": methods}
        Path(target).write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        terminalreporter.write_line(f"written to {target}")


def by_method(reporter: Any) -> dict[str, dict[str, dict[str, Any]]]:
    """What each case left, by the folder it is in and its name."""
    found = sorted(outcomes(reporter), key=lambda each: (each["method"], each["case"]))
    return {
        method: {each.pop("case"): each | {"variant": variant(each.pop("method"))} for each in cases}
        for method, cases in groupby(found, key=lambda each: each["method"])
    }


def outcomes(reporter: Any) -> Iterator[dict[str, Any]]:
    for report in [*reporter.stats.get("passed", ()), *reporter.stats.get("failed", ())]:
        parity = dict(report.user_properties).get("parity") if getattr(report, "when", "") == "call" else None
        if parity is not None:
            yield {**parity, "error": float(f"{parity['error']:.1e}"), "agrees": report.outcome == "passed"}


def variant(folder: str) -> str:
    """The variant of the method that the cases of a folder are about; empty where there is only one."""
    name = folder.partition("_")[0]
    methods = [getattr(prunekit.policies, each) for each in prunekit.policies.__all__ if each.lower() == name]
    references = [each.reference for each in methods if issubclass(each, Method) and each.reference is not None]
    choices = references[0].variants if references else ()
    return next((each for each in choices if each == "released" or folder.endswith(f"_{each}")), "")
