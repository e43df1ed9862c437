"""Decoding reads nothing back to the host on the session's account; a prefill reads the row counts, once.

Where the encoder's patches and the visual tokens are in different orders, a prefill reads the images' sizes besides, if
attention of the encoder is needed or the encoder is pruned inside: `SIZES` and `GRIDS` say where.

A GPU has to finish all its work before a value can be read: one `.item()` a layer would cost more than pruning saves.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import transformers
from catalogue import ATTENTION, BUDGETS, FAMILIES, POLICIES, Items, subject
from invariants import LAYOUTS, generate
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from prunekit import Keep, Stage, _vision, prune
from prunekit.cache import CACHE
from prunekit.models import llava_next
from prunekit.policies import STAR, CrossAttention, Random, SelfAttention, uniform_grid

HALF = Keep(ratio=0.5)

READERS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__int__", "__float__", "__index__", "__array__")
WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "unique", "_unique2", "bincount")
CHECKS = "_checks.py"  # reads at once on the CPU only; on other devices its reads wait for the next call


def _reader() -> str | None:
    """The function of the core or of an adapter that is responsible for what is happening; None for the model's own.

    Functions of transformers that an adapter calls are the adapter's; those that the core wraps are the model's.
    """
    frame: Any = sys._getframe(2)
    called = False
    while frame is not None:
        path, name = frame.f_code.co_filename, frame.f_code.co_name
        called = called or "/transformers/" in path
        ours = any(part in path for part in ("/prunekit/", "/policies/", "/models/")) and "site-packages" not in path
        if ours and name not in ("<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>"):
            adapter = "/models/" in path or path.endswith("_adapter.py")
            return None if path.endswith(CHECKS) or (called and not adapter) else f"{path.rsplit('/', 1)[1]}:{name}"
        frame = frame.f_back
    return None


class _Dispatch(TorchDispatchMode):
    def __init__(self, reads: Counter[str]) -> None:
        super().__init__()
        self.reads, self.quiet = reads, False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        mask = name in ("index", "index_put_") and any(t is not None and t.dtype == torch.bool for t in args[1])
        if not self.quiet and (name in WAITING or mask) and (reader := _reader()):
            self.reads[reader] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def host_reads() -> Iterator[Counter[str]]:
    """Count reads of tensor values by the core and by policies, by function."""
    reads: Counter[str] = Counter()

    def counted(original: Callable[..., Any]) -> Callable[..., Any]:
        def method(self: Tensor, *args: Any, **kwargs: Any) -> Any:
            if (reader := _reader()) is not None:
                reads[reader] += 1
            mode.quiet = True  # one read is one read, however it is carried out
            try:
                return original(self, *args, **kwargs)
            finally:
                mode.quiet = False

        return method

    mode = _Dispatch(reads)
    with pytest.MonkeyPatch.context() as patch, mode:
        for name in READERS:
            patch.setattr(Tensor, name, counted(getattr(Tensor, name)))
        yield reads


@pytest.mark.parametrize("layout", ["single", "ragged"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("attention", ATTENTION)
@torch.no_grad()
def test_host_reads(attention: str, policy: str, layout: str) -> None:
    model = subject("llava", attention)
    inputs = model.make_inputs(**LAYOUTS[layout])
    token = torch.full((len(inputs["input_ids"]), 1), 7)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(token)], dim=1)
    with prune(model.model, *POLICIES[policy].build(BUDGETS["ratio"])):
        with host_reads() as prefill:
            out = model.model(**inputs, use_cache=True)
        with host_reads() as decode:
            model.model(input_ids=token, attention_mask=mask, **{CACHE: out[CACHE]})
    assert dict(decode) == {}
    assert dict(prefill) == {COUNTS: 1}


COUNTS = "_call.py:read"
"""The one read of every prefill: how many visual and other tokens each row has."""
TILES = {"llava_next.py:to_tokens"}
SIZES = {
    "llava_next": TILES,
    "llava_next_video": TILES,
    "llava_onevision": TILES | {"llava_next.py:pack"},
    "mistral3": {"mistral3.py:grids"},
    "qwen2_5_vl": {"qwen_vl.py:patches_of_tokens"},
}
"""Where the sizes of images are read, for attention of an encoder whose order is not that of the visual tokens."""
PACKED = {"_adapter.py:packed_tokens"}
GRIDS = dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "glm4v", "glm4v_moe"), PACKED)
"""Where they are read besides, for pruning inside an encoder that runs on all images in one sequence."""
PLANS: dict[str, Items] = {
    "decoder": (
        Stage("input", Random(), Keep(ratio=0.5, per="image")),
        Stage("decoder.2", CrossAttention(), Keep(ratio=0.25)),
    ),
    "attention": (STAR(keep=0.25),),
    "inside": (Stage("vision.0", SelfAttention(), HALF),),
}


CASES = [
    (name, plan)
    for name, family in FAMILIES.items()
    for plan in PLANS
    if not (plan == "attention" and not family.encoder_layers)
    and not (plan == "inside" and not (family.encoder_layers and family.sites))
]


@pytest.mark.parametrize(("family", "plan"), CASES)
@torch.no_grad()
def test_host_reads_of_every_family(family: str, plan: str) -> None:
    """A prompt and three tokens after it read no more than the prompt alone."""
    model, expected = subject(family, "sdpa"), {COUNTS}
    expected |= SIZES.get(family, set()) if plan in ("attention", "inside") else set()
    expected |= GRIDS.get(family, set()) if plan == "inside" else set()
    inputs = model.make_inputs(**LAYOUTS["ragged"])
    with prune(model.model, *PLANS[plan]):
        with host_reads() as prefill:
            model.model(**inputs)
        with host_reads() as both:
            generate(model.model, inputs, 4)
    assert prefill[COUNTS] == 1
    assert prefill.keys() == expected
    if family != "qwen2_5_vl":  # there, transformers' own function reads a copy on the host number by number
        assert all(reads <= 2 for reads in prefill.values()), prefill
    assert both == prefill


def test_the_count_has_power() -> None:
    """A function of the package that looks at a value is noticed, however it looks."""
    names: dict[str, Any] = {}
    source = "looks = [lambda t: t.tolist(), lambda t: int(t[0]), lambda t: t[t > 0], lambda t: 1 if t[0] == 0 else 2]"
    exec(compile(source, uniform_grid.__file__, "exec"), names)
    for look in names["looks"]:
        with host_reads() as reads:
            look(torch.arange(3))
        assert sum(reads.values()) == 1
    with host_reads() as reads:
        torch.arange(3).tolist()
    assert not reads


@pytest.mark.parametrize(("caller", "reads"), [(llava_next, 1), (_vision, 0)], ids=["adapter", "core"])
def test_functions_of_transformers_count_for_the_adapter_that_calls_them(caller: Any, reads: int) -> None:
    """And the model's own, which run inside of what the core wraps, count for nobody."""
    names: dict[str, Any] = {}
    exec(compile("def own(t): return t.tolist()", transformers.__file__, "exec"), names)
    exec(compile("def call(t): return own(t)", caller.__file__, "exec"), names)
    with host_reads() as found:
        names["call"](torch.arange(3))
    assert sum(found.values()) == reads
