"""The catalogue of published methods, baselines and combinators: each goes through the invariants on every family."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from catalogue import Items

from prunekit import Keep, Stage, policies
from prunekit.policies import CrossAttention, Random


@dataclass(frozen=True)
class Entry:
    """A published method: how to build it, and what a model must have for it.

    Attributes:
        asks: of `encoder`, `cls`, `vision`, `connector`, `mask`, `patches`; see tests/contract/test_zoo.py.
        identity: whether it changes nothing when it keeps everything.
    """

    build: Callable[[Keep], Items]
    asks: tuple[str, ...] = ()
    identity: bool = True


def _method(make: Callable[..., Any], *asks: str, identity: bool = True, **options: Any) -> Entry:
    return Entry(lambda keep: (make(keep=keep, **options),), asks, identity)


ZOO = {
    "fastv": _method(policies.FastV),
    "fastervlm": _method(policies.FasterVLM, "cls"),
    "vispruner": _method(policies.VisPruner, "cls"),
    "visionzip": _method(policies.VisionZip, "cls", "connector"),
    "visionzip-released": _method(policies.VisionZip, "cls", "connector", "plain", identity=False, variant="released"),
    "prumerge": _method(policies.PruMerge, "cls", "connector", identity=False),
    "prumerge-adaptive": Entry(lambda keep: (policies.PruMerge(),), ("cls", "connector"), identity=False),
    "prumerge-plus": Entry(lambda keep: (policies.PruMerge(plus=True),), ("cls", "connector"), identity=False),
    "divprune": _method(policies.DivPrune),
    "cdpruner": _method(policies.CDPruner),
    "dart": _method(policies.DART),
    "pyramiddrop": _method(policies.PyramidDrop),
    "sparsevlm": Entry(lambda keep: (policies.SparseVLM(),), identity=False),
    "sparsevlm-plus": _method(policies.SparseVLM, identity=False, version="plus"),
    "hired": _method(policies.HiRED, "cls"),
    "hired-tiles": Entry(lambda keep: (policies.HiRED(0.3, tiles=True),), ("cls", "patches"), identity=False),
    "holov": _method(policies.HoloV, "cls"),
    "holov-released": _method(policies.HoloV, "cls", identity=False, variant="released"),
    "scope": _method(policies.SCOPE, "cls"),
    "vscan": _method(policies.VScan, "cls"),
    "mustdrop": Entry(
        lambda keep: (policies.MustDrop(of_all=0.07, of_one=0.2),), ("cls", "vision", "mask"), identity=False
    ),
    "fitprune": Entry(lambda keep: (policies.FitPrune((3, 4, 2, 0), visual=16),), identity=False),
    "tome": _method(policies.ToMe, "vision", identity=False, proportional=False),
    "flowcut": _method(policies.FlowCut, "cls", "vision", "mask"),
    "vtw": Entry(lambda keep: (policies.VTW(layer=2),), identity=False),
    "topv": _method(policies.TopV),
    "star": _method(policies.STAR, "encoder"),
    "average-pooling": Entry(lambda keep: (Stage("input", policies.AveragePooling(), keep),)),
    "downsampling": Entry(lambda keep: (Stage("input", policies.Downsampling(), keep),), identity=False),
    "mix": Entry(lambda keep: (Stage("decoder.2", policies.Mix([CrossAttention(), policies.Norm()]), keep),)),
    "union": Entry(lambda keep: (Stage("input", policies.Union([policies.Norm(), Random()]), keep),)),
}
