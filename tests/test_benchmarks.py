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
from scripts import BENCHMARKS, ROOT

PLANS = ("input", "decoder", "star", "pyramid")
WAYS = {"input": {"pruned", "ideal"}, "star": {"pruned", "ideal"}}
WAYS |= {plan: {"pruned", "ideal", "usual"} for plan in ("decoder", "pyramid")}
STRUCTURES = ("llava", "qwen3_vl", "gemma3", "molmo2", "mistral3", "paligemma", "llama4")
"""Plain; DeepStack; windows and two rotary tables; prefix masks; separators; eager attention only; complex tables."""
SMALL: dict[str, Any] = {"text": 11, "steps": 3}


def small_prompt(modules: Any, family: str, **kwargs: Any) -> Any:
    prompts = modules("prompts")
    return prompts.Prompt(family, prompts.sizes_of(family, 8, 64, 6), **SMALL | kwargs)


# --- the ways --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", STRUCTURES)
@torch.inference_mode()
def test_all_ways_compute_the_same(modules: Any, family: str) -> None:
    """What is timed is the same work: prefill and decode steps give the same logits, and dense ones differ."""
    variants, comparison, prompts = modules("variants"), modules("comparison"), modules("prompts")
    prompt = small_prompt(modules, family)
    dense = comparison.head_outputs(variants.Dense(prompt))
    for plan in PLANS:
        pruned = variants.Pruned(prompt, prompts.plan(plan, 8, prompt.images, 6))
        kept = pruned.kept()
        expected = comparison.head_outputs(pruned)
        names = WAYS[plan] - {"pruned"}
        for way in (getattr(variants, name.title())(prompt, kept) for name in sorted(names)):
            torch.testing.assert_close(comparison.head_outputs(way), expected, rtol=1e-4, atol=1e-4)
            assert lengths(way) == lengths(pruned), plan
        assert (dense - expected).abs().max() > 0.01
        visual = [min([len(kept[stage]) for stage in kept if stage <= layer], default=None) for layer in range(6)]
        planned = [None if left is None else prompt.length - prompt.images + left + prompt.steps for left in visual]
        held = zip(planned, lengths(pruned), strict=True)
        assert all(keys == expected for expected, keys in held if expected is not None), plan


def lengths(way: Any) -> list[int]:
    """Keys of each layer's cache after the prompt and all tokens."""
    with way.ready():
        way.prefill()
        for _ in range(way.prompt.steps):
            way.step(way.prompt.token)
    return [layer.keys.shape[-2] for layer in way.cache.layers]


@torch.inference_mode()
def test_the_front_ends_at_the_first_layer(modules: Any) -> None:
    variants = modules("variants")
    prompt = small_prompt(modules, "llava")
    front, layer = variants.Front(prompt), prompt.adapter.decoder_layers[0]
    with front.ready():
        hidden = front.prefill()
        assert hidden.shape == (1, prompt.length, 64)
        assert torch.equal(hidden[0, ~prompt.visual], embedded(prompt)[~prompt.visual])
        assert front.step(prompt.token).shape == (1, 1, 64)
    assert not layer._forward_pre_hooks
    assert variants.Dense(prompt).prefill().shape[:2] == (1, 1)


def embedded(prompt: Any) -> torch.Tensor:
    found: torch.Tensor = prompt.model.get_input_embeddings()(prompt.sent["input_ids"])[0]
    return found


@torch.inference_mode()
def test_ways_that_compute_something_else_are_left_out(modules: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    variants, comparison, prompts = modules("variants"), modules("comparison"), modules("prompts")

    class Wrong(variants.Ideal):  # type: ignore[misc, name-defined]
        def logits(self, hidden: torch.Tensor) -> torch.Tensor:
            return super().logits(2 * hidden + 1)  # type: ignore[no-any-return]

    class Broken(variants.Usual):  # type: ignore[misc, name-defined]
        def prefill(self) -> torch.Tensor:
            raise RuntimeError("no map\nof attention")

    monkeypatch.setattr(comparison, "Ideal", Wrong)
    monkeypatch.setattr(comparison, "Usual", Broken)
    prompt = small_prompt(modules, "llava")
    pruned = variants.Pruned(prompt, prompts.plan("decoder", 8, 64, 6))
    made, left_out = comparison.variants(prompt, "decoder", pruned)
    assert made.keys() == {"pruned"}
    assert "its logits differ" in left_out["ideal"]
    assert left_out["usual"] == "RuntimeError: no map"


def test_masks_of_windows_are_cut_by_their_last_columns(modules: Any) -> None:
    visible = modules("recording").visible
    columns = torch.tensor([0, 3, 6, 9])
    mask = torch.tensor([True, False, True, True])[None, None, None]  # of the columns 6 to 9
    assert visible(mask, columns).flatten().tolist() == [False, False, True, True]
    added = torch.zeros(1, 1, 1, 4)
    hidden = torch.finfo(added.dtype).min
    assert visible(added, columns).flatten().tolist() == [hidden, hidden, 0, 0]


# --- measuring -------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_peak_memory_is_what_tensors_take(modules: Any) -> None:
    """Pruning holds no more than the dense model; the profiler finds the cache, which is known."""
    variants, timing, prompts = modules("variants"), modules("timing"), modules("prompts")
    prompt = prompts.Prompt("llava", prompts.sizes_of("llava", 12, 64, 6), **SMALL)
    pruned = variants.Pruned(prompt, prompts.plan("decoder", 16, 144, 6))
    kept = pruned.kept()
    ways = {"dense": variants.Dense(prompt), "pruned": pruned}
    ways |= {"ideal": variants.Ideal(prompt, kept), "usual": variants.Usual(prompt, kept)}
    peaks = {name: timing.peak_memory(way, "cpu") for name, way in ways.items()}
    cache = 6 * 2 * prompt.length * 64 * 4  # layers, keys and values, tokens, width, bytes
    assert peaks["pruned"] <= peaks["dense"]
    assert cache < peaks["dense"] < 4 * cache
    assert peaks["usual"] > peaks["ideal"] + prompt.length**2 * 4


@torch.inference_mode()
def test_memory_of_scoring_grows_linearly(modules: Any) -> None:
    """What reading attention adds to a layer grows with the tokens, where the full map grows with their square."""
    scaling, options = modules("scaling"), modules("overhead").parse(["--quick", "--family", "llava"])
    found = scaling.memory_of_scoring((2, 4, 8, 16), 8, 64, options)
    assert [row["visual"] for row in found["tokens"]] == [128, 256, 512, 1024]
    assert 0.9 < found["growth"]["pruned"] < 1.1
    assert found["growth"]["usual"] > 1.7


@pytest.mark.parametrize("plan", PLANS)
@torch.inference_mode()
def test_memory_of_a_pruned_prefill_grows_linearly(modules: Any, plan: str) -> None:
    """No stage of any plan holds anything that grows with the square of the tokens."""
    variants, timing, prompts = modules("variants"), modules("timing"), modules("prompts")
    peaks = []
    for images in (8, 16):
        prompt = small_prompt(modules, "llava", images=images)
        pruned = variants.Pruned(prompt, prompts.plan(plan, 8, prompt.images, 6))
        peaks.append(timing.peak_memory(pruned, "cpu"))
    assert peaks[1] < 2.2 * peaks[0]


def test_paired_ratios(modules: Any) -> None:
    ratio = modules("timing").paired([2.0, 4.0, 60.0, 8.0, 10.0], [1.0, 2.0, 3.0, 4.0, 5.0])
    assert ratio["median"] == ratio["low"] == 2.0
    assert ratio["pairs"] == 5
    assert ratio["high"] <= 20.0


def test_ratios_without_the_front_and_without_scoring(modules: Any) -> None:
    times = {"dense": [8.0], "front": [1.0], "pruned": [4.0], "ideal": [3.0]}
    ratios = modules("comparison").compared((times, times), scoring=0.5)
    assert {name: ratio["median"] for name, ratio in ratios.items()} == {
        "ratio_to_ideal": 4 / 3,
        "unscored_ratio_to_ideal": 7 / 6,
        "layers_ratio_to_ideal": 1.5,
        "speedup_over_dense": 2.0,
        "decode_ratio_to_ideal": 4 / 3,
        "layers_decode_ratio_to_ideal": 1.5,
        "decode_speedup_over_dense": 2.0,
    }


# --- the scripts -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_script(tmp_path: Path, modules: Any) -> None:
    command = [sys.executable, str(BENCHMARKS / "overhead.py"), "--quick", "--threads", "1", "--output", "out/all.json"]
    command += ["--family", "llava", "qwen3_vl", "--scaling"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "ratio_to_ideal" in done.stdout
    result = json.loads((tmp_path / "out" / "all.json").read_text(encoding="utf-8"))
    assert result.keys() >= {"families", "scaling", "ranges", "config", "hardware", "threads", "versions", "units"}
    assert result["left_out"] == {}
    assert result["threads"] == 1
    assert result.keys() >= set(modules("comparison").RATIOS)
    assert result["families"].keys() == {"llava", "qwen3_vl"}
    for found in result["families"].values():
        assert found["plans"].keys() == set(PLANS)
        for plan, values in found["plans"].items():
            assert values["ways"].keys() == WAYS[plan]
            for way in (found["dense"], found["front"], *values["ways"].values()):
                assert min(way[key] for key in ("prefill_ms", "decode_ms_per_token", "peak_memory")) > 0
            assert {"ratio_to_ideal", "decode_ratio_to_ideal"} <= values["ratios"].keys()
            for ratio in values["ratios"].values():
                assert ratio["low"] <= ratio["median"] <= ratio["high"]
            assert values["scoring_ms"] > 0
            assert values["ways"]["pruned"]["peak_memory"] <= found["dense"]["peak_memory"]
    assert [(each["hidden"], each["visual"]) for each in result["scaling"]["times"]] == [
        (32, 64), (32, 320), (64, 64), (64, 320)
    ]  # fmt: skip
    tables = modules("update_overhead").section(result)
    assert tables.count("| qwen3_vl |") == len(PLANS)
    assert tables.count("| llava |") == len(PLANS)


@pytest.mark.slow
def test_going_on_with_a_run(tmp_path: Path, modules: Any) -> None:
    target = tmp_path / "all.json"
    command = [sys.executable, str(BENCHMARKS / "overhead.py"), "--quick", "--threads", "1", "--output", str(target)]

    def results(*more: str) -> Any:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run([*command, *more], env=environment, capture_output=True, text=True, check=False)
        return json.loads(target.read_text(encoding="utf-8")) if done.returncode == 0 else done.stderr

    first = results("--family", "llava")
    second = results("--resume", "--family", "llava", "lfm2_vl")
    assert second["families"]["llava"] == first["families"]["llava"]
    assert second["seconds"] >= first["seconds"]
    assert second["ranges"]["ratio_to_ideal"]["measured"] > first["ranges"]["ratio_to_ideal"]["measured"]
    assert "has none" in second["families"]["lfm2_vl"]["impossible"]["pyramid"]  # its first layer is a convolution
    tables = modules("update_overhead").section(second)
    assert tables.count("| lfm2_vl |") == len(second["families"]["lfm2_vl"]["plans"]) < len(PLANS)
    assert "- lfm2_vl, pyramid: CrossAttention" in tables
    assert "was measured with" in results("--resume", "--family", "llava", "--clock", "cpu")


def test_what_cannot_be_measured_is_refused(modules: Any, capsys: pytest.CaptureFixture[str]) -> None:
    parse = modules("overhead").parse
    for words, said in {
        "--family lava": "no such family; there are aria",
        "--family blip_2": "no KV cache",
        "--family mllama": "cross-attention",
        "--family llava --layers 4": "at least 6 layers",
        "--family nemotron_h_omni": "output head",
        "--resume": "no --output",
    }.items():
        with pytest.raises(SystemExit):
            parse(words.split())
        assert said in capsys.readouterr().err


def test_all_families_are_measured(modules: Any) -> None:
    """Those with an adapter of their own, and others; settings name families that exist."""
    from prunekit.adapter import supported_models
    from prunekit.models.tiny.builders import BUILDERS

    prompts = modules("prompts")
    assert set(supported_models()) <= set(prompts.families())
    for names in (prompts.MANY, prompts.EXPERTS, prompts.WINDOWS, prompts.NO_CACHE):
        assert names <= BUILDERS.keys()
