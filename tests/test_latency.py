"""The protocol of `prunekit bench`: what is measured, in which order, and what is refused. No test asserts a time."""

from __future__ import annotations

import csv
import json
import sys
import textwrap
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
import yaml
from experiments import prunekit, refused, write

from prunekit import Keep, Stage, flops
from prunekit.adapter import adapter_for
from prunekit.errors import ConfigError, MeasurementError, OutputError
from prunekit.latency import Benchmark, Protocol, Request, Row, Timer, WallTimer, bench, measure
from prunekit.latency.machine import check_memory, device_of
from prunekit.latency.profiled import peak_memory, scorer_seconds
from prunekit.latency.protocol import batched, run_rounds
from prunekit.latency.result import paired
from prunekit.latency.roofline import Peaks, Work, bounds, peaks, work
from prunekit.latency.source import at_length
from prunekit.latency.timer import CudaTimer, timer_for
from prunekit.latency.ways import PARTS, Way
from prunekit.models import tiny
from prunekit.policies import STAR, CrossAttention, FastV, SelfAttention

CPU = torch.device("cpu")
QUICK = Protocol(batch=(1, 2), decode_tokens=2, repeats=2)


class Counting(Timer):
    """A clock that goes on by one second whenever it is looked at, and checks that it is waited for."""

    name = "counting"

    def __init__(self) -> None:
        self.now = self.waited = 0

    def mark(self) -> int:
        self.now += 1
        return self.now

    def wait(self) -> None:
        self.waited = self.now

    def seconds(self, start: int, end: int) -> float:
        assert end <= self.waited, "moments are compared before the device has come to them"
        return float(end - start)


@cache
def model_and_inputs() -> tuple[Any, dict[str, torch.Tensor]]:
    model, make_inputs = tiny.tiny_random("llava")
    return model, dict(make_inputs())


@cache
def measured() -> Benchmark:
    model, inputs = model_and_inputs()
    methods = {"STAR": STAR(keep=0.25), "stage": Stage("decoder.2", CrossAttention("last"), Keep(tokens=4))}
    return measure(model, inputs, methods, QUICK)


# --- the protocol ----------------------------------------------------------------------------------------------------


def test_every_part_of_every_way_is_measured() -> None:
    found = measured()
    assert [(row.name, row.batch) for row in found.rows] == [
        (name, batch) for batch in (1, 2) for name in ("dense", "STAR", "stage")
    ]
    for row in found.rows:
        assert set(row.seconds) == set(PARTS)
        assert all(len(taken) == QUICK.repeats and min(taken) > 0 for taken in row.seconds.values())
        assert all(v + t < whole for v, t, whole in zip(*(row.seconds[p] for p in PARTS[:3]), strict=True))
        assert (row.scorer_seconds is None) == (row.name == "dense")
        assert row.attention == ("sdpa", "sdpa")
        assert row.throughput == row.batch / median(row.seconds["generate"])
    assert all(row.scorer_seconds or row.name == "dense" for row in found.rows)


def test_the_model_is_left_as_it_was() -> None:
    model, inputs = model_and_inputs()
    with torch.no_grad():
        before = model(**inputs).logits  # transformers places hooks of its own in a model's first run
        hooks = [(dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in model.modules()]
        Way(adapter_for(model), STAR(keep=4).stages(4)).once(inputs, 1, WallTimer())
        assert hooks == [(dict(m._forward_pre_hooks), dict(m._forward_hooks)) for m in model.modules()]
        assert torch.equal(model(**inputs).logits, before)


def test_ways_take_turns_in_a_random_order(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = model_and_inputs()
    ran: list[int] = []

    def once(way: Way, *args: Any) -> dict[str, float]:
        ran.append(0 if not way.stages else way.stages[0].keep.tokens)  # type: ignore[union-attr, arg-type]
        return {"prefill": float(len(ran))}

    monkeypatch.setattr(Way, "once", once)
    ways = {str(n): Way(adapter_for(model), (Stage("input", SelfAttention(), Keep(tokens=n)),)) for n in (4, 8, 12)}
    ways["0"] = Way(adapter_for(model))
    protocol = Protocol(decode_tokens=1, repeats=6, warmup=2)
    found = run_rounds(ways, inputs, protocol, WallTimer())
    assert [int(name) for names in found.order for name in names] == ran[8:]  # all but the rounds that warm up
    assert len(found.order) == 6
    assert all(sorted(names) == sorted(ways) for names in found.order)
    assert len({tuple(names) for names in found.order}) > 1
    taken = sorted(seconds for each in found.seconds.values() for seconds in each["prefill"])
    assert taken == [float(n) for n in range(9, 33)]
    assert found.order == run_rounds(ways, inputs, protocol, WallTimer()).order
    assert found.order != run_rounds(ways, inputs, replace(protocol, seed=1), WallTimer()).order


def test_marks_lie_around_what_is_measured() -> None:
    """By a clock that counts how often it is looked at: hooks inside the prefill, none inside decoding and answers."""
    model, inputs = model_and_inputs()
    taken = Way(adapter_for(model)).once(inputs, 4, Counting())
    assert taken == {"vision": 1, "language": 1, "prefill": 5, "decode": 1 / 4, "generate": 1}


def test_what_a_session_does_is_inside_the_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies that run at the input are in the language model's time; those in the encoder in the encoder's."""
    model, inputs = model_and_inputs()
    clock = Counting()
    select = SelfAttention.select

    def slow(self: Any, *args: Any) -> Any:
        clock.now += 100
        return select(self, *args)

    monkeypatch.setattr(SelfAttention, "select", slow)
    for site, part in {"input": "language", "vision.1": "vision"}.items():
        stages = (Stage(site, SelfAttention(), Keep(ratio=0.5)),)
        taken = Way(adapter_for(model), stages).once(inputs, 1, clock)
        assert {name for name in ("vision", "language") if taken[name] > 100} == {part}
        assert taken["prefill"] > 100 > taken["decode"]


def test_batches_repeat_the_sample() -> None:
    model, inputs = model_and_inputs()
    many = batched(inputs, 3)
    assert many["input_ids"].shape[0] == many["pixel_values"].shape[0] == 3
    with torch.no_grad():
        alone, three = model(**inputs).logits, model(**many).logits
    torch.testing.assert_close(three[2:], alone, rtol=1e-4, atol=1e-5)


def test_text_is_lengthened() -> None:
    model, inputs = model_and_inputs()
    visual = int(adapter_for(model).visual_mask(inputs["input_ids"], None).sum())
    longer = at_length(inputs, adapter_for(model), 40)
    assert longer["input_ids"].shape == longer["attention_mask"].shape == (1, visual + 40)
    assert longer["pixel_values"] is inputs["pixel_values"]
    with pytest.raises(MeasurementError, match="text_tokens: 2 is too few"):
        at_length(inputs, adapter_for(model), 2)


def test_the_name_of_the_baseline_is_taken() -> None:
    model, inputs = model_and_inputs()
    with pytest.raises(MeasurementError, match="'dense' is taken"):
        measure(model, inputs, {"dense": STAR(keep=4)}, QUICK, roofline=False)


def test_numbers_that_measure_nothing_are_refused() -> None:
    for wrong in (
        {"repeats": 1},
        {"warmup": 0},
        {"decode_tokens": 0},
        {"batch": ()},
        {"batch": (0,)},
        {"batch": (2, 2)},
    ):
        with pytest.raises(MeasurementError, match=next(iter(wrong))):
            Protocol(**wrong)


# --- clocks ----------------------------------------------------------------------------------------------------------


def test_timers_are_those_of_the_device() -> None:
    assert isinstance(timer_for(CPU), WallTimer)
    assert isinstance(timer_for(torch.device("cuda", 0)), CudaTimer)
    for device, name, said in (
        ("cpu", "cuda", "CUDA events time CUDA devices alone"),
        ("cuda", "wall", "return before their work is done"),
        ("cpu", "wal", "Did you mean 'wall'"),
        ("meta", "auto", "'meta' has no timer here"),
    ):
        with pytest.raises(MeasurementError, match=said):
            timer_for(torch.device(device), name)


class FakeEvent:
    """A CUDA event that happens when the device has been waited for."""

    clock = 0.0
    pending: list[FakeEvent]

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.at: float | None = None

    def record(self, stream: str) -> None:
        assert stream == "stream of cuda:0"
        FakeEvent.pending.append(self)

    def elapsed_time(self, end: FakeEvent) -> float:
        assert self.at is not None
        assert end.at is not None
        return end.at - self.at

    @classmethod
    def synchronize(cls, device: torch.device) -> None:
        for event in cls.pending:
            cls.clock += 250.0
            event.at = cls.clock
        cls.pending = []


def test_cuda_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a GPU with fake events: milliseconds become seconds, and nothing is read before it has happened."""
    FakeEvent.pending = []
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "synchronize", FakeEvent.synchronize)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    timer = CudaTimer(torch.device("cuda", 0))
    start, end = timer.mark(), timer.mark()
    timer.wait()
    assert timer.seconds(start, end) == 0.25
    model, inputs = model_and_inputs()
    taken = Way(adapter_for(model), STAR(keep=4).stages(4)).once(inputs, 2, timer)
    assert taken == {"vision": 0.25, "language": 0.25, "prefill": 1.25, "decode": 0.125, "generate": 0.25}


def test_devices_that_are_not_there_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert device_of("cuda:0").index == 0
    for name, said in {"cuda:1": "has 1 CUDA devices", "cuuda": "Did you mean 'cuda'"}.items():
        with pytest.raises(MeasurementError, match=said):
            device_of(name)


# --- ratios ----------------------------------------------------------------------------------------------------------


def row(name: str, seconds: list[float], **changes: Any) -> Row:
    common: dict[str, Any] = {"budget": None, "batch": 1, "attention": ("sdpa", "sdpa"), "device": "cpu"}
    common |= {"dtype": "float32", "scorer_seconds": None, "peak_memory": 1, "decode_tokens": 1}
    return Row(name, seconds={"prefill": seconds, "generate": seconds}, **(common | changes))


def test_speedups_are_medians_of_paired_ratios() -> None:
    dense, fast = row("dense", [2.0, 40.0, 6.0]), row("fast", [1.0, 10.0, 3.0])
    ratio = Benchmark([dense, fast]).speedup(fast)
    assert (ratio.median, ratio.low, ratio.high, ratio.pairs) == (2.0, 2.0, 4.0, 3)
    with pytest.raises(MeasurementError, match="3 and 2 rounds"):
        paired([1.0, 2.0, 3.0], [1.0, 2.0])


def test_no_speedup_without_a_dense_row_that_was_measured_alike() -> None:
    fast = row("fast", [1.0, 1.0])
    unlike = {
        "dense model, which was not measured": [fast, row("dense", [2.0, 2.0], batch=4)],
        "with attention": [fast, row("dense", [2.0, 2.0], attention=("eager", "sdpa"))],
        "with dtype": [fast, row("dense", [2.0, 2.0], dtype="bfloat16")],
        "with device": [fast, row("dense", [2.0, 2.0], device="cuda:0")],
    }
    for said, rows in unlike.items():
        for ask in (lambda found: found.speedup(fast), lambda found: found.to_dict()):
            with pytest.raises(MeasurementError, match=said):
                ask(Benchmark(rows))
    with pytest.raises(MeasurementError, match="part 'decoding' was not measured"):
        Benchmark([row("dense", [2.0, 2.0]), fast]).speedup(fast, "decoding")


def test_expected_speedup_scales_each_part_by_its_operations() -> None:
    def a_row(name: str, vision: int, language: int, rest: int) -> Row:
        work = {"vision": Work(vision, 1), "language": Work(language, 1), "rest": Work(rest, 1)}
        made = row(name, [10.0, 10.0], bounds=bounds(work, Peaks(1.0, 1.0)))
        return replace(made, seconds=made.seconds | {"vision": [2.0, 2.0], "language": [7.0, 7.0]})

    dense, fast = a_row("dense", 100, 700, 10), a_row("fast", 100, 100, 5)
    found = Benchmark([dense, fast])
    assert found.expected_speedup(fast) == pytest.approx(10 / (2 + 1 + 0.5))
    assert found.flops_speedup(fast) == pytest.approx(810 / 205)
    assert Benchmark([row("dense", [1.0]), row("fast", [1.0])]).expected_speedup(row("fast", [1.0])) is None


# --- the scorer, memory and the roofline -----------------------------------------------------------------------------


def test_the_scorers_time_is_that_of_its_scopes() -> None:
    model, inputs = model_and_inputs()
    adapter = adapter_for(model)
    with torch.no_grad():
        assert scorer_seconds(lambda: Way(adapter).prefill(inputs), CPU) == 0
        way = Way(adapter, STAR(keep=4).stages(4))
        with way.ready():
            assert scorer_seconds(lambda: way.prefill(inputs), CPU) > 0


def test_peak_memory_is_what_tensors_take() -> None:
    def run() -> torch.Tensor:
        held = torch.zeros(1000)
        return torch.cat([held, torch.zeros(3000)]).sum()

    assert 4 * 8000 <= peak_memory(run, CPU) < 4 * 8200
    model, inputs = model_and_inputs()
    with torch.no_grad():
        cache = Way(adapter_for(model)).prefill(inputs).past_key_values
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    one, two = (row.peak_memory for row in measured().rows if row.name == "dense")
    assert held < one < 8 * held
    assert 1.8 * one < two < 2.2 * one


@torch.no_grad()
def test_bytes_and_operations_are_those_of_the_shapes() -> None:
    """Of the dense model by hand; of a pruned one the states of fewer tokens."""
    model, inputs = model_and_inputs()
    adapter, text = adapter_for(model), model.config.text_config
    way = Way(adapter)
    cost = flops.count(model, inputs)
    found = work(way, batched(inputs, 2), cost, 2, tokens=3)
    length, width, depth = inputs["input_ids"].shape[1], text.hidden_size, adapter.depth
    weights = (
        sum(p.nbytes for layer in adapter.decoder_layers for p in layer.parameters()) + 4 * width
    )  # the final norm
    states = depth * 2 * 2 * length * width * 4  # layers, in and out, samples
    cache = depth * 2 * 2 * length * (width // text.num_attention_heads * text.num_key_value_heads) * 4
    assert found["language"] == Work(2 * 2 * cost.macs["prefill"], weights + states + cache)
    head = adapter.lm_head.weight.nbytes  # type: ignore[union-attr]
    step = cache // length
    assert found["decode"].bytes == weights + head + cache + 2 * step
    assert found["decode"].flops > 0  # type: ignore[operator]
    pruned = Way(adapter, FastV(keep=4, layer=1).stages(4))
    fewer = work(pruned, batched(inputs, 2), flops.count(model, inputs, pruned.stages), 2, tokens=3)
    dropped = measured().setup and int(adapter.visual_mask(inputs["input_ids"], None).sum()) - 4
    assert found["language"].bytes - fewer["language"].bytes > (depth - 1) * 2 * dropped * width * 4
    assert fewer["vision"] == found["vision"]


def test_bounds() -> None:
    found = bounds({"vision": Work(100, 10), "rest": Work(10, 50), "decode": Work(None, 30)}, Peaks(10.0, 5.0))
    assert (found["vision"].seconds, found["vision"].limit) == (10.0, "compute")
    assert (found["rest"].seconds, found["rest"].limit) == (10.0, "memory")
    assert (found["decode"].seconds, found["decode"].limit) == (6.0, "memory")
    assert (found["prefill"].seconds, found["prefill"].flops, found["prefill"].bytes) == (20.0, 110, 60)


def test_peaks_by_a_clock_that_counts() -> None:
    found = peaks(CPU, torch.float32, Counting())
    assert (found.flops, found.bandwidth) == (2 * 1024**3, 2 * 4 * 2**25)  # of work that takes a second each


# --- the command -----------------------------------------------------------------------------------------------------

SMALL = ("--repeats", 2, "--decode-tokens", 2, "--device", "cpu")


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


# --- callbacks -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Everything that a logger receives from an experiment with all callbacks."""
    folder = tmp_path_factory.mktemp("callbacks")
    callbacks = [
        "KeptTokensCallback",
        "CostCallback",
        {"class_path": "LatencyCallback", "init_args": {"repeats": 2, "decode_tokens": 1}},
    ]
    logger = {"class_path": "pytorch_lightning.loggers.CSVLogger", "init_args": {"save_dir": str(folder)}}
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "callbacks": callbacks, "logger": logger}
    task = {"class_path": "Scenes", "init_args": {"scenes": 1}}
    path = write(folder / "my.yaml", trainer=trainer, task=task, methods={"STAR": "STAR"}, budgets=[0.5])
    assert prunekit("run", path, "--output", folder / "run") == 0
    (file,) = folder.rglob("metrics.csv")
    found: dict[str, float] = {}
    for line in csv.DictReader(file.read_text(encoding="utf-8").splitlines()):
        found |= {name: float(value) for name, value in line.items() if value and name not in ("epoch", "step")}
    return found


def test_callbacks_log_tokens(logged: dict[str, float]) -> None:
    dense = [logged[f"visual_tokens/dense/decoder.{layer}"] for layer in range(8)]
    pruned = [logged[f"visual_tokens/STAR 50 %/decoder.{layer}"] for layer in range(8)]
    assert dense == [144] * 8
    assert pruned == sorted(pruned, reverse=True)
    assert logged["visual_tokens/STAR 50 %/average"] == pytest.approx(sum(pruned) / 8)
    assert 60 < logged["visual_tokens/STAR 50 %/average"] <= 72


def test_callbacks_log_operations(logged: dict[str, float]) -> None:
    for label in ("dense", "STAR 50 %"):
        parts = [value for name, value in logged.items() if name.startswith(f"macs/{label}/")]
        assert len(parts) == 5
        assert logged[f"flops/{label}"] == pytest.approx(2 * sum(parts))
    assert logged["flops/STAR 50 %"] < logged["flops/dense"]


def test_callbacks_log_time_and_memory(logged: dict[str, float]) -> None:
    for name in ("prefill_ms", "decode_ms", "peak_memory_mib"):
        assert logged[f"{name}/dense"] > 0
        assert logged[f"{name}/STAR 50 %"] > 0
    assert {name for name in logged if "speedup" in name} == {
        "prefill_speedup/STAR 50 %",
        "decode_speedup/STAR 50 %",
    }
    assert "accuracy/STAR 50 %" in logged


def test_a_callback_beside_the_yaml_file(tmp_path: Path) -> None:
    """Found by its module's name, and found again by the configuration of the run, from anywhere."""
    code = """
        from pathlib import Path
        from pytorch_lightning import Callback

        class Noting(Callback):
            def __init__(self, file: str):
                self.file = file

            def on_test_end(self, trainer, pl_module):
                Path(self.file).write_text(" ".join(sorted(trainer.callback_metrics)))
        """
    (tmp_path / "my_callback_module.py").write_text(textwrap.dedent(code))
    noting = {"class_path": "my_callback_module.Noting", "init_args": {"file": str(tmp_path / "noted")}}
    trainer = {"accelerator": "cpu", "enable_progress_bar": False, "callbacks": [noting, "KeptTokensCallback"]}
    task = {"class_path": "Scenes", "init_args": {"scenes": 1}}
    path = write(tmp_path / "my.yaml", trainer=trainer, task=task, methods={"Random": "Random"}, budgets=[0.5])
    assert prunekit("run", path, "--output", tmp_path / "run") == 0
    assert "visual_tokens/Random 50 %/decoder.3" in (tmp_path / "noted").read_text()
    config = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
    assert config["trainer"]["callbacks"] == [noting, "KeptTokensCallback"]
    assert config["imports"] == [str(tmp_path)]
    del sys.modules["my_callback_module"]
    assert prunekit("run", tmp_path / "run" / "config.yaml", "--output", tmp_path / "again") == 0
    del sys.modules["my_callback_module"]


def test_misspelt_callbacks_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer = {"accelerator": "cpu", "callbacks": [{"class_path": "LatencyCallback", "init_args": {"repeat": 2}}]}
    said = refused(capsys, "run", write(tmp_path / "my.yaml", trainer=trainer), "--output", tmp_path / "run")
    assert "trainer" in said
    assert "repeat" in said
