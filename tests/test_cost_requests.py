"""`prunekit flops` without weights: the shape of its JSON, wrong requests, and the ways to name a model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from catalogue import subject
from experiments import prunekit as command
from experiments import refused
from transformers import CONFIG_MAPPING

import prunekit
from prunekit import cost
from prunekit.budget import Budget
from prunekit.costs.bench import Bench
from prunekit.costs.skeleton import build
from prunekit.errors import (
    BudgetError,
    CheckpointError,
    ConfigError,
    CostError,
    NeedsError,
    PrunekitError,
    UnsupportedModelError,
)
from prunekit.policies import STAR, FasterVLM, PruMerge
from prunekit.presets import presets


def build_config(name: str) -> Any:
    values = dict(presets()[name].config)
    return CONFIG_MAPPING[values.pop("model_type")](**values)


def test_json_of_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("flops", "llava-1.5-7b", "STAR", "--json", "--decode-tokens", "4") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["model"] == "llava-1.5-7b"
    for each in (found["dense"], found["pruned"]):
        assert list(each["macs"]) == ["vision", "projector", "scorer", "prefill", "lm_head", "decode"]
        assert each["flops"] == 2 * each["total_macs"] == 2 * sum(each["macs"].values())
        assert len(each["visual_tokens_per_layer"]) == len(each["prefill_per_layer"]) == len(each["kv_lengths"]) == 32
        assert sum(each["scorers"].values()) == each["macs"]["scorer"]
        assert each["kv_bytes"] == sum(each["kv_lengths"]) * 2 * 4096 * 2
    assert found["convention"]["attention"].startswith("full")
    assert command("flops", "tiny", "STAR", "FastV", "--json", "--budget", "72") == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)["pruned"]] == ["STAR", "FastV"]
    assert command("flops", "tiny", "--json") == 0
    assert "pruned" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("lava-1.5-7b", "STAR"), "Did you mean 'llava-1.5-7b'?"),
        (("nobody/llava-1.5-7b", "STAR"), "not in the local cache"),
        (("tiny", "STRA"), "Did you mean 'STAR'?"),
        (("tiny", "--images", "0"), "images=0: allowed are whole numbers from 1"),
        (("tiny", "--batch", "-2"), "batch=-2"),
        (("tiny", "--text-tokens", "3"), "text_tokens=3: allowed are whole numbers from 4"),
        (("tiny", "--decode-tokens", "-1"), "decode_tokens=-1"),
        (("tiny", "--dtype", "bfloat"), "Did you mean 'bfloat16'?"),
        (("tiny", "--image-size", "large"), "--image-size 'large'"),
        (("tiny", "--image-size", "0x9"), "allowed are a height and a width"),
        (("tiny", "--image-size", "97"), "resizes every image to 96x96"),
        (("qwen2-vl-7b", "--image-size", "10x9000"), "aspect ratio"),
        (("tiny", "STAR", "--budget", "-0.5"), "-0.5 is no budget; give"),
        (("tiny", "STAR", "--budget", "0"), "0 is no budget; give"),
        (("tiny", "STAR", "--budget", "nan"), "nan is no budget; give"),
        (("tiny", "STAR", "--budget", "1.5"), "a share is at most 1.0, and a number is written without a point"),
        (("tiny", "{class_path: "), "'{class_path: ' is no YAML; write STAR"),
        (("tiny", "STAR", "--budgett", "3"), "Did you mean '--budget'?"),
        (("smolvlm2-2.2b", "--image-size", "1x30000"), "no pixel is left"),
        (("tiny", "STAR", "--budget", "500"), "a sample has only 144"),
        (("tiny", "STAR", "--budget", "half"), "--budget 'half'"),
        (("tiny", "FastV", "--budget", "0.01"), "cannot reach 1.44"),
        (("tiny", "FlowCut"), "FlowCutStage at vision.0 at least 36 and at most 144"),
        (("tiny", "STAR", "--budget", "flop=0.3"), "Did you mean 'flops'?"),
        (("tiny", "STAR", "--budget", "flops=0.01"), "cannot reach 0.01 of the dense prefill's FLOPs"),
        (("tiny", "STAR", "--budget", "kv=99", "--dtype", "int4"), "give a share of the KV cache"),
        (("tiny", "PruMerge", "--budget", "none"), "depends on the data"),
        (("tiny", "Random", "--budget", "none"), "has no budget of its own"),
    ],
)
def test_wrong_requests_are_named(capsys: pytest.CaptureFixture[str], words: tuple[str, ...], part: str) -> None:
    assert part in refused(capsys, "flops", *words)


def test_wrong_models_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(CheckpointError, match=r"config\.json"):
        cost(str(folder))
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UnsupportedModelError, match="'bert'"):
        cost(str(folder))
    (folder / "config.json").write_text('{"model_type": "lava"}')
    with pytest.raises(CheckpointError, match="lava"):
        cost(str(folder))
    with pytest.raises(ConfigError, match="int is no model"):
        cost(7)
    with pytest.raises(CostError, match=r"processor of 'molmo2'.*known are llava.*flops\.count"):
        cost(subject("molmo2", "sdpa").model)
    with pytest.raises(NeedsError, match="CLS"):
        cost("qwen2.5-vl-3b", FasterVLM(keep=64))
    with pytest.raises(BudgetError, match="budget"):
        cost("tiny", STAR(), budget=True)
    with pytest.raises(ConfigError, match="unreachable"):
        cost("tiny", unreachable="ignore")
    assert issubclass(CostError, PrunekitError)


def test_a_folder_and_a_config_are_the_same_model(tmp_path: Path) -> None:
    config = build_config("llava-1.5-7b")
    config.save_pretrained(tmp_path)
    by_name, *others = (cost(each).dense.cost for each in ("llava-1.5-7b", config, str(tmp_path)))
    assert others == [by_name, by_name]
    assert cost("llava-hf/llava-1.5-7b-hf").dense.cost == by_name  # from the cache, or else the preset
    with pytest.raises(CostError, match=r"methods.PruMerge: .*keep=\.\.\."):
        cost(config, PruMerge())


def test_the_name_is_there_without_a_tracer() -> None:
    assert prunekit.cost is cost
    with pytest.raises(AttributeError, match="costs_nothing"):
        _ = prunekit.costs_nothing  # type: ignore[attr-defined]
    assert Bench(build(build_config("llava-1.5-7b"), "llava"), 0, "float16").adapter.depth == 32


def test_budgets_have_the_vocabulary_of_the_library(capsys: pytest.CaptureFixture[str]) -> None:
    by_text, by_budget = (cost("tiny", "DivPrune", budget=each).pruned[0] for each in ("flops=0.5", Budget(flops=0.5)))
    assert by_text == by_budget
    dense = cost("tiny").dense.cost.macs["prefill"]
    macs = by_text.cost.macs
    assert 0.48 * dense < macs["prefill"] + macs["scorer"] <= 0.5 * dense
    assert command("flops", "tiny", "DivPrune", "--json", "--budget", "tokens=40") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["pruned"]["visual_tokens_per_layer"] == [40] * 8
    assert found["pruned"]["budget"] == "tokens=40"
    assert found["prompt"]["decode_tokens"] == 32
    assert found["dense"]["macs"]["decode"] > 0
