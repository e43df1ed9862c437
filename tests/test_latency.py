"""The protocol of `prunekit bench`: what is measured, in which order, and what is refused. No test asserts a time."""

from __future__ import annotations

from dataclasses import replace
from statistics import median
from typing import Any

import pytest
import torch
from latency_common import CPU, QUICK, Counting, measured, model_and_inputs

from prunekit import Keep, Stage
from prunekit.adapter import adapter_for
from prunekit.errors import MeasurementError
from prunekit.latency import Benchmark, Protocol, Row, WallTimer, measure
from prunekit.latency.machine import device_of
from prunekit.latency.protocol import batched, run_rounds
from prunekit.latency.result import paired
from prunekit.latency.roofline import Peaks, Work, bounds
from prunekit.latency.source import at_length
from prunekit.latency.timer import CudaTimer, timer_for
from prunekit.latency.ways import PARTS, Way
from prunekit.policies import STAR, SelfAttention


# --- the protocol -----------------------------------------------------------------------------------------------------
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
    monkeypatch.setattr("gc.collect", lambda: 0)  # slow, and nothing is timed here
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


# --- clocks -----------------------------------------------------------------------------------------------------------
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


# --- ratios -----------------------------------------------------------------------------------------------------------
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
