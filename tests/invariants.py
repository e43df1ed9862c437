"""The invariants as functions, so that the tests can also show that a broken session fails them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from catalogue import Items, Subject
from oracle import Alive, Inputs, latest, masked, placeholders, positions, row_of
from torch import Tensor

from prunekit import prune
from prunekit.cache import CACHE
from prunekit.models.tiny.builders.common import IMAGE, VIDEO

MULTIPLE = ("two-images", "ragged")  # layouts with several images in a row
CLOSE, FAR = 1e-5, 1e-3
LAYOUTS: dict[str, dict[str, Any]] = {
    "single": {},
    "padded": {"batch": 3, "text": (6, 9, 4)},
    "two-images": {"images": 2},
    "ragged": {"batch": 3, "images": (2, 1, 3), "text": (5, 8, 6)},
}


def assert_near(actual: Tensor, expected: Tensor, what: str, tolerance: float = CLOSE) -> None:
    assert actual.shape == expected.shape, f"{what}: {tuple(actual.shape)} is not {tuple(expected.shape)}"
    assert actual.isfinite().all(), f"{what}: not finite"
    gap = (actual - expected).abs().max().item()
    scale = max(1.0, expected.abs().max().item())
    assert gap <= tolerance * scale, f"{what}: differs by {gap:.2e}"


def generate(model: Any, inputs: Inputs, steps: int = 6, **kwargs: Any) -> Any:
    """`model.generate`, with the logits of every step."""
    kwargs = {"do_sample": False, "output_logits": True, "return_dict_in_generate": True} | kwargs
    kwargs["suppress_tokens"] = [IMAGE, VIDEO]  # without a cache, it would be one more placeholder
    torch.manual_seed(7)  # for sampling
    return model.generate(**inputs, max_new_tokens=steps, **kwargs)


def same_generation(actual: Any, expected: Any, what: str, tolerance: float = CLOSE) -> None:
    assert len(actual.logits) == len(expected.logits)
    for step, (ours, theirs) in enumerate(zip(actual.logits, expected.logits, strict=True)):
        assert_near(ours, theirs, f"{what}, logits of step {step}", tolerance)
    assert torch.equal(actual.sequences, expected.sequences), f"{what}: other tokens"


@torch.no_grad()
def check_identity(subject: Subject, items: Items, inputs: Inputs) -> None:
    """1. A session that keeps everything changes no bit."""
    plain, tokens = subject.model(**inputs), generate(subject.model, inputs, 4)
    with prune(subject.model, *items) as session:
        kept = subject.model(**inputs)
        assert torch.equal(kept.logits, plain.logits), "logits changed"
        out = generate(subject.model, inputs, 4)
    assert session.trace, "no record: the session did not prune at all"
    assert torch.equal(out.sequences, tokens.sequences), "tokens changed"
    assert all(torch.equal(a, b) for a, b in zip(out.logits, tokens.logits, strict=True)), "decode logits changed"


@torch.no_grad()
def check_mask_oracle(
    subject: Subject, items: Items, inputs: Inputs, records: int = 1, steps: int = 6, **kwargs: Any
) -> None:
    """2. Pruning equals masking: at every position that still means something, and at every generated token."""
    with prune(subject.model, *items) as session:
        logits = subject.model(**inputs).logits
        first = latest(session.trace, records)
        out = generate(subject.model, inputs, steps, **kwargs)
        second = latest(session.trace, records)
    assert len(session.trace) == 2 * records
    assert all(torch.equal(a.kept, b.kept) for a, b in zip(first, second, strict=True) if len(a.kept) == len(b.kept))
    alive = Alive(first, inputs, subject.family)
    plain = subject.dense(**inputs).logits
    with masked(subject.dense, alive, subject.family):
        expected = subject.dense(**inputs).logits
        expected_out = generate(subject.dense, inputs, steps, **kwargs)
    final = alive.final()
    assert_near(logits[final], expected[final], "prefill")
    same_generation(out, expected_out, "generate")
    changed = (logits - plain)[:, -1].abs().amax(-1)
    assert changed.max() > FAR, f"no power: pruned and dense differ by {changed.max():.1e} only"


@torch.no_grad()
def check_rows_alone(subject: Subject, items: Items, inputs: Inputs, records: int = 1) -> None:
    """3. A row of a batch gives what its sample gives alone."""
    steps = 3
    with prune(subject.model, *items) as session:
        together = generate(subject.model, inputs, steps)
        batch = latest(session.trace, records)
        for row in range(len(inputs["input_ids"])):
            alone = generate(subject.model, row_of(inputs, row, subject.family), steps)
            for record, single in zip(batch, latest(session.trace, records), strict=True):
                kept = record.kept[row][record.kept[row] >= 0]
                assert kept.tolist() == single.kept[0].tolist(), f"row {row} keeps other tokens at {record.site}"
                assert record.visual[row] == single.visual[0]
            new = alone.sequences.shape[1] - steps
            assert alone.sequences[0, new:].tolist() == together.sequences[row, -steps:].tolist()
            for ours, theirs in zip(together.logits, alone.logits, strict=True):
                assert_near(ours[row], theirs[0], f"row {row}")


@torch.no_grad()
def check_cache(subject: Subject, items: Items, inputs: Inputs, records: int = 1, steps: int = 3) -> None:
    """4, 5, 7. Every cache has the planned keys, all of the text, at the dense run's positions; no layer runs twice."""
    family = subject.family
    layers = subject.model.get_submodule(family.decoder_layers)
    calls = [0] * len(layers)

    def count(layer: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            calls[layer] += 1

        return hook

    handles = [module.register_forward_pre_hook(count(layer)) for layer, module in enumerate(layers)]
    try:
        with prune(subject.model, *items) as session:
            out = subject.model(**inputs, use_cache=True)
            assert calls == [1] * len(layers), f"prefill: layers ran {calls} times"
            alive = Alive(latest(session.trace, records), inputs, family)
            real = inputs["attention_mask"]
            with masked(subject.dense, alive, family):
                dense = subject.dense(**inputs, use_cache=True)
                _same_keys(out[CACHE], dense[CACHE], alive)
                for step in range(1, steps + 1):
                    token = dense.logits[:, -1:].argmax(-1)
                    real = torch.cat([real, torch.ones_like(token)], dim=1)
                    more: dict[str, Any] = {"input_ids": token, "attention_mask": real}
                    out = subject.model(**more, **{CACHE: out[CACHE]})
                    dense = subject.dense(**more, **{CACHE: dense[CACHE]})
                    assert calls == [step + 1] * len(layers), f"step {step}: layers ran {calls} times"
                    assert_near(out.logits[:, -1], dense.logits[:, -1], f"step {step}")
                    _same_keys(out[CACHE], dense[CACHE], alive, step)
            assert len(session.trace) == records, "a decode step was taken for a prefill"
    finally:
        for handle in handles:
            handle.remove()


def _same_keys(cache: Any, dense: Any, alive: Alive, step: int = 0) -> None:
    for layer, held in enumerate(cache.layers):
        assert held.keys.shape[-2] == alive.planned(layer) + step, f"layer {layer} holds {held.keys.shape[-2]} keys"
        assert held.values.shape[-2] == held.keys.shape[-2]
        columns = alive.decoder(layer)
        assert (columns >= (alive.text & alive.real)).all(), f"layer {layer} lost text"
        for row, chosen in enumerate(columns):
            chosen = torch.cat([chosen, torch.ones(step, dtype=torch.bool)])
            expected = dense.layers[layer].keys[row][:, chosen]
            assert_near(held.keys[row][:, -expected.shape[1] :], expected, f"keys of layer {layer}, row {row}")


def check_trace(records: Sequence[Any], inputs: Inputs, subject: Subject) -> None:
    """Kept indices are ascending, unique, in range, and among those of the stage before."""
    visual = placeholders(inputs, subject.family).sum(-1)
    before = None
    for record in records:
        assert list(record.visual) == visual.tolist()
        for row, total in zip(record.kept, visual.tolist(), strict=True):
            kept = row[row >= 0]
            assert (row[len(kept) :] == -1).all(), "padding is not at the right"
            assert (kept[1:] > kept[:-1]).all(), "not ascending"
            assert (kept < total).all(), "out of range"
        columns = positions(record, inputs, subject.family)
        assert before is None or (before >= columns).all(), f"{record.site} brought back a token that was gone"
        before = columns


def positions_behind(model: Any, mask: Tensor, new: int) -> dict[str, Tensor]:
    """M-RoPE of text that follows; transformers itself makes it for a whole prompt or for `generate` only."""
    deltas = getattr(getattr(model, "model", None), "rope_deltas", None)
    return {} if deltas is None else {"position_ids": (mask.cumsum(-1)[:, -new:] - 1 + deltas).expand(3, -1, -1)}
