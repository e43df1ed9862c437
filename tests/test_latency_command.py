"""`prunekit bench`: its JSON, its tables, what it refuses, and the benchmark of the documentation."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from experiments import prunekit, refused
from latency_common import CPU, model_and_inputs
from scripts import load

from prunekit.adapter import adapter_for
from prunekit.errors import ConfigError, MeasurementError, OutputError
from prunekit.latency import Protocol, Request, bench
from prunekit.latency.machine import check_memory
from prunekit.latency.ways import PARTS

SMALL = ("--repeats", 2, "--decode-tokens", 2, "--device", "cpu")


@pytest.mark.slow
def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "found.json"
    words = ("tiny", "STAR", "--budget", 0.5, "flops=0.5", "--batch", 1, 2, "--text-tokens", 20, "--attention", "eager")
    assert prunekit("bench", *words, *SMALL, "--json", "--output", file) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert json.loads(file.read_text()) == found
    assert [(row["name"], row["budget"], row["batch"]) for row in found["rows"]] == [
        (*way, batch) for batch in (1, 2) for way in (("dense", None), ("STAR", 0.5), ("STAR", "flops=0.5"))
    ]
    for row in found["rows"]:
        assert row["attention"]["language"] == "eager"
        assert set(row["median_ms"]) == set(PARTS)
        assert set(row["bounds"]) == {"vision", "language", "rest", "decode", "prefill"}
        assert row["bounds"]["prefill"]["share_of_measured"] > 0
        assert len(row["visual_tokens"]) == 8
        if row["name"] == "STAR":
            assert set(row["speedup"]) == set(PARTS)
            assert all(each["low"] <= each["median"] <= each["high"] for each in row["speedup"].values())
            assert row["flops_speedup"]["prefill"] > 1
            assert row["expected_prefill_speedup"] > 1
    assert found["setup"]["prompt"] == {"visual": 144, "text": 20, "length": 164}
    assert found["setup"]["timer"] == "wall"
    assert found["peaks"]["flops"] > found["peaks"]["bandwidth"] * 0
    assert len(found["order"]["2"]) == 2
    assert "exists" in refused(capsys, "bench", *words, "--output", file)


def test_the_tables(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("llava", "STAR", "--random", "--size", "hidden=64", "layers=4", "--budget", "tokens=9")
    assert prunekit("bench", *words, *SMALL) == 0
    text = capsys.readouterr().out
    for word in ("LlavaForConditionalGeneration", "36 visual and 64 other tokens", "STAR 9", "prefill", "GFLOP/s"):
        assert word in text
    assert prunekit("bench", *words, *SMALL, "--roofline", "false") == 0
    assert "GFLOP" not in capsys.readouterr().out


def test_what_cannot_be_measured_is_left_out_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A budget that one method cannot reach does not keep the others from being measured; alone it is an error."""
    file, late = tmp_path / "found.json", "{class_path: FastV, init_args: {layer: 3}}"
    words = ("llava", "SelfAttention", late, "--random", "--budget", 0.05, "--output", file)
    assert prunekit("bench", *words, *SMALL, "--roofline", "false") == 0
    (line,) = [each for each in capsys.readouterr().out.splitlines() if each.startswith("Left out: ")]
    assert line.startswith("Left out: methods.FastV at budget 0.05: ")
    assert "its range is" in line
    found = json.loads(file.read_text())
    assert [row["name"] for row in found["rows"]] == ["dense", "SelfAttention"]
    (skipped,) = found["skipped"]
    assert (skipped["name"], skipped["budget"], f"Left out: {skipped['reason']}") == ("FastV", 0.05, line)
    assert list(found["setup"]["stages"]) == ["dense", "SelfAttention 5 %"]

    monkeypatch.setattr("prunekit.latency.request.measure", None)
    assert "its range is" in refused(capsys, "bench", "llava", late, "--random", "--budget", 0.05, *SMALL)
    words = ("llava", late, "{class_path: FastV, init_args: {layer: 99}}", "--random", "--budget", 0.05)
    said = refused(capsys, "bench", *words, *SMALL)
    assert said.count("methods.") == 2
    assert "Nothing can be measured." in said


def test_methods_as_configured_and_random_types() -> None:
    request = Request("llava", ("{class_path: FastV, init_args: {keep: 3, layer: 1}}",), (), random=True, device="cpu")
    request = replace(request, protocol=Protocol(repeats=2, decode_tokens=1), dtype="bfloat16", text_tokens=9)
    found = bench(request)
    assert found.rows[1].visual_tokens == (36, 3, 3, 3)
    assert found.rows[1].dtype == "bfloat16"


def test_mistakes_are_refused_before_anything_is_built(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prunekit.latency.request.measure", None)
    for words, said in {
        "tiny STAR --timer cuda --device cpu": "CUDA events time CUDA devices alone",
        "tiny STAR --attention sdpaa": "Did you mean 'sdpa'?",
        "tiny STAR --dtype float64": "allowed are float32",
        "tiny STAR --batch 0": "at least 1",
        "tiny STAR --size hidden=3": "sizes go with --random",
        "llava STAR --random --size hiden=64": "Did you mean 'hidden'?",
        "llava STAR --random --size hidden": "write it as hidden=1024",
        "llava STAR --random --size hidden=63 heads=4": "no model of llava has hidden=63 heads=4",
        "llava STAR --random --size layers=0": "layers=0; allowed are whole numbers from 1",
        "tiny {class_path:": "is no YAML",
        "tiny STAR --timr wall": "Did you mean '--timer'?",
        "tiny STAR --budget 1.5": "a share is at most 1.0",
        "tiny STAR --budget 500": "a sample has only 144",
        "tiny STA": "STAR",
        "tiny STAR --text-tokens 1": "too few",
        "tiny STAR --budget flop=0.3": "flops",
    }.items():
        assert said in refused(capsys, "bench", *words.split()), words
    with pytest.raises(OutputError):
        Request("tiny", ("STAR",), output="/nowhere/found.json")
    with pytest.raises(ConfigError, match="attention"):
        Request("tiny", ("STAR",), attention="flash")  # type: ignore[arg-type]


def test_models_that_do_not_fit_are_refused_with_their_size(monkeypatch: pytest.MonkeyPatch) -> None:
    model, _ = model_and_inputs()
    monkeypatch.setattr("prunekit.latency.machine._free", lambda device: 2**20)
    adapter = adapter_for(model)
    check_memory(adapter, torch.float32, CPU, batch=1, length=42)
    with pytest.raises(MeasurementError, match=r"KV cache at batch size 4096 need at least .* free on cpu are 0.0 GiB"):
        check_memory(adapter, torch.float32, CPU, batch=4096, length=42)


def test_a_preset_is_refused_where_it_does_not_fit(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seven billion weights in float32, known without building any."""
    monkeypatch.setattr("prunekit.latency.machine._free", lambda device: 16 * 2**30)
    said = refused(capsys, "bench", "llava-1.5-7b", "STAR", "--random", "--device", "cpu")
    assert "7.1 billion weights in float32" in said
    assert "--dtype bfloat16" in said


@pytest.mark.slow
def test_the_benchmark_of_the_documentation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The quick run, whose model is too small for speed-ups; its tables are those of the stored file."""
    script, threads, file = load("benchmarks/latency.py"), torch.get_num_threads(), tmp_path / "out" / "latency.json"
    try:
        assert script.main(["--quick", "--threads", str(threads), "--batch", "1", "--output", str(file)]) == 0
    finally:
        torch.set_num_threads(threads)
    printed, found = capsys.readouterr().out, json.loads(file.read_text(encoding="utf-8"))
    assert printed.strip() == script.section(found)
    assert [each["name"] for each in found["check"]] == [row["name"] for row in found["rows"][1:]]
    for each in found["check"]:
        assert each["gap"] == pytest.approx(each["measured"] / each["expected"] - 1)
        assert each["within"] == (abs(each["gap"]) <= 0.15)
        assert each["operations"] > 1 < each["expected"]
        assert not each["bound"]
