"""The scorer's time, peak memory, and the roofline: operations and bytes are those of the shapes."""

from __future__ import annotations

import torch
from latency_common import CPU, Counting, measured, model_and_inputs

from prunekit import flops
from prunekit.adapter import adapter_for
from prunekit.cache import CACHE
from prunekit.latency.profiled import peak_memory, scorer_seconds
from prunekit.latency.protocol import batched
from prunekit.latency.roofline import Peaks, Work, bounds, peaks, work
from prunekit.latency.ways import Way
from prunekit.policies import STAR, FastV


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
        cache = Way(adapter_for(model)).prefill(inputs)[CACHE]
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
