"""The overhead benchmark runs, writes what it promises, and compares ways that compute the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
WAYS = {"dense", "pruned", "ideal", "usual"}
RATIOS = {
    "ratio_to_ideal",
    "decode_ratio_to_ideal",
    "speedup_over_dense",
    "decode_speedup_over_dense",
    "usual_over_pruned",
}


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script as a module, with its neighbour importable."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import overhead

    yield overhead
    for name in ("overhead", "variants"):
        sys.modules.pop(name, None)


@torch.inference_mode()
def test_all_ways_compute_the_same(script: Any) -> None:
    """What is timed is the same work: prefill and decode steps give the same logits, and dense ones differ."""
    prompt = script.Prompt(side=8, text=8, keep=16, device="cpu", dtype=torch.float32, hidden=64, layers=4)
    for tensor in prompt.model.model.language_model.parameters():
        if tensor.ndim == 2:
            tensor.mul_(8)  # attention that decides something
    ways = script.variants(prompt)
    logits, lengths = {}, {}
    for name, way in ways.items():
        with way.ready():
            steps = [way.prefill(), *(way.step(torch.full((1, 1), token)) for token in (7, 9, 11))]
        logits[name] = torch.cat(steps, dim=1)
        lengths[name] = [way.cache.get_seq_length(layer) for layer in range(4)]
    for name in ("pruned", "usual"):
        torch.testing.assert_close(logits[name], logits["ideal"], rtol=1e-4, atol=1e-4)
        assert lengths[name] == lengths["ideal"]
    assert (logits["dense"] - logits["ideal"]).abs().max() > 0.01
    assert lengths["ideal"] == [prompt.length + 3] * 2 + [prompt.length - 48 + 3] * 2


@torch.inference_mode()
def test_peak_memory_is_what_tensors_take(script: Any) -> None:
    """Pruning holds no more than the dense model; the profiler finds the cache, which is known."""
    prompt = script.Prompt(side=12, text=8, keep=16, device="cpu", dtype=torch.float32, hidden=64, layers=4)
    peaks = {name: script.peak_memory(way, "cpu") for name, way in script.variants(prompt).items()}
    cache = 4 * 2 * prompt.length * 64 * 4  # layers, keys and values, tokens, width, bytes
    assert peaks["pruned"] <= peaks["dense"]
    assert cache < peaks["dense"] < 4 * cache
    assert peaks["usual"] > peaks["ideal"] + prompt.length**2 * 4


def test_paired_ratios(script: Any) -> None:
    times = {"slow": [2.0, 4.0, 60.0, 8.0, 10.0], "fast": [1.0, 2.0, 3.0, 4.0, 5.0]}
    ratio = script.paired(times, "slow", "fast")
    assert ratio["median"] == ratio["low"] == 2.0
    assert ratio["pairs"] == 5
    assert ratio["high"] <= 20.0


def test_the_script(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "overhead.py"), "--quick", "--threads", "1", "--json", "out/all.json"]
    environment = os.environ | {"PYTHONPATH": str(BENCHMARKS.parent)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ratio_to_ideal" in done.stdout
    result = json.loads((tmp_path / "out" / "all.json").read_text(encoding="utf-8"))
    assert result.keys() >= RATIOS | {"config", "hardware", "threads", "versions", "intervals", "units"}
    for ratio in RATIOS:
        interval = result["intervals"][ratio]
        assert 0 < interval["low"] <= interval["median"] == result[ratio] <= interval["high"]
    for key in ("peak_memory", "prefill_ms", "decode_ms_per_token"):
        assert result[key].keys() == WAYS
        assert min(result[key].values()) > 0
    assert result["peak_memory"]["pruned"] <= result["peak_memory"]["dense"]
    assert result["threads"] == 1


def test_a_shape_that_is_no_grid_is_refused(script: Any, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script.parse(["--visual", "575"])
    assert "square" in capsys.readouterr().err
