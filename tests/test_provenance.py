"""Results say where they come from, in the fields that stored results and the documentation have."""

from __future__ import annotations

import argparse
import json
import os
import platform
from typing import Any

import pytest
import torch
from scripts import ROOT, load

import prunekit
from prunekit import provenance
from prunekit.models.tiny.training import card

CPU = torch.device("cpu")


def stored(file: str) -> Any:
    return json.loads((ROOT / file).read_text(encoding="utf-8"))


def test_the_machine() -> None:
    found = provenance.hardware(CPU)
    assert found["device"] == "cpu"
    assert found["cores"] == os.cpu_count()
    assert found["threads"] == torch.get_num_threads()
    assert found["processor"]
    assert found["system"].startswith(platform.system())
    assert "gpu" not in found


def test_a_gpu_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: f"card of {device}")
    assert provenance.hardware(torch.device("cuda:1"))["gpu"] == "card of cuda:1"


def test_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "PACKAGES", ("torch", "no-such-package"))
    expected = {"torch": torch.__version__, "no-such-package": "unknown", "python": platform.python_version()}
    assert provenance.versions() == expected | {"prunekit": prunekit.__version__}


def test_experiments_and_latency_store_what_they_stored() -> None:
    experiment, latency = stored("benchmarks/results/quickstart.json"), stored("benchmarks/results/latency.json")
    for found in (experiment["provenance"], latency["setup"]):
        assert found["hardware"].keys() == provenance.hardware(CPU).keys()
        assert found["versions"].keys() == provenance.versions().keys()


def test_benchmarks_store_what_they_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    timing = load("benchmarks/timing.py")
    found = timing.provenance(argparse.Namespace(device="cpu", output="somewhere", repeats=3))
    old = stored("benchmarks/results/overhead.json")
    assert found.keys() <= old.keys()
    assert found["hardware"].keys() == old["hardware"].keys()
    assert found["versions"].keys() == old["versions"].keys()
    assert found["config"] == {"device": "cpu", "repeats": 3}
    assert found["hardware"]["cpu"] == provenance.hardware(CPU)["processor"]
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "a card")
    assert timing.provenance(argparse.Namespace(device="cuda"))["hardware"]["gpu"] == "a card"


def test_the_model_card_stores_what_it_stored() -> None:
    found, old = card.hardware(), stored("models/tiny/llava/card.json")["hardware"]
    assert found.keys() == old.keys()
    assert found["processor"].startswith(provenance.hardware(CPU)["processor"])
