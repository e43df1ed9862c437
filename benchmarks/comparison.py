"""One family measured: every plan, in all ways that apply to it."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from prompts import PLANS, Prompt, plan, sizes_of
from timing import Times, measure, paired, peak_memory, timed
from variants import Dense, Front, Ideal, Pruned, Usual, Variant

from prunekit import Keep, Method, Needs, PruningPolicy, Selection, Stage, VisualTokens
from prunekit.errors import PrunekitError
from prunekit.plan import Plan

__all__ = ["RATIOS", "compared", "described", "family", "head_outputs"]

RATIOS = (
    "ratio_to_ideal",
    "unscored_ratio_to_ideal",
    "decode_ratio_to_ideal",
    "layers_ratio_to_ideal",
    "layers_decode_ratio_to_ideal",
    "speedup_over_dense",
    "decode_speedup_over_dense",
    "usual_over_pruned",
)
"""What is computed from the times of a plan, where it has all the ways that a ratio needs."""

SCORED = ("decoder", "pyramid")
"""Plans that `usual` can run: all their stages read the map of a decoder layer."""


def family(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Measure a family; ways that do not compute what they should are left out, and why is said."""
    sizes = sizes_of(name, options.side, options.hidden, options.layers)
    dtype = getattr(torch, options.dtype)
    prompt = Prompt(name, sizes, text=options.text, steps=options.tokens + 1, device=options.device, dtype=dtype)
    ways: dict[str, Variant] = {"dense": Dense(prompt), "front": Front(prompt)}
    plans, impossible = {}, {}
    for each in PLANS:
        items = plan(each, options.keep, prompt.images, prompt.adapter.depth)
        try:
            made, left_out = variants(prompt, each, Pruned(prompt, items))
        except PrunekitError as error:
            impossible[each] = str(error)
            continue
        ways |= {f"{each}.{way}": variant for way, variant in made.items()}
        stages = {stage.site: stage.count(prompt.images) for stage in made["pruned"].session.plan.stages}  # type: ignore[attr-defined]
        plans[each] = {"stages": stages, "left_out": left_out}
    memory = {way: peak_memory(variant, options.device) for way, variant in ways.items()}
    times = measure(ways, options)
    for each, found in plans.items():
        own = {way: way.partition(".")[2] or way for way in ways if way in ("dense", "front") or way.startswith(each)}
        prefill, decode = ({short: kind[way] for way, short in own.items()} for kind in times)
        found["ways"] = {
            short: described(way, times, memory) for way, short in own.items() if short not in ("dense", "front")
        }
        found["scoring_ms"] = scoring_ms(prompt, plan(each, options.keep, prompt.images, prompt.adapter.depth), options)
        found["ratios"] = compared((prefill, decode), found["scoring_ms"] / 1000)
    shape = {"hidden": options.hidden, "layers": prompt.adapter.depth, "prompt": prompt.length, "visual": prompt.images}
    shape["parameters"] = sum(weight.numel() for weight in prompt.model.parameters())
    found_dense = {way: described(way, times, memory) for way in ("dense", "front")}
    return {"shape": shape} | found_dense | {"plans": plans, "impossible": impossible}


def variants(prompt: Prompt, name: str, pruned: Pruned) -> tuple[dict[str, Variant], dict[str, str]]:
    """All ways to run a plan that compute what `pruned` computes, and why others are left out."""
    kept = pruned.kept()
    if not kept:
        raise RuntimeError("the session found no visual tokens in the prompt")
    made: dict[str, Variant] = {"pruned": pruned}
    left_out = {} if name in SCORED else {"usual": "its first stage reads no map of a decoder layer"}
    expected = head_outputs(pruned)
    close = (1e-3 if expected.dtype == torch.float32 else 5e-2) * float(expected.abs().max())
    for way, make in {"ideal": Ideal, "usual": Usual}.items():
        if way in left_out:
            continue
        try:
            variant = make(prompt, kept)
            gap = float((head_outputs(variant) - expected).abs().max())
        except (RuntimeError, TypeError, ValueError, AttributeError) as error:
            left_out[way] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            continue
        if gap <= close:
            made[way] = variant
        else:
            left_out[way] = f"its logits differ from those of the pruned model by {gap:.1e}"
    return made, left_out


@dataclass(frozen=True)
class Clocked(PruningPolicy):
    """A policy that notes the seconds it takes to select."""

    policy: PruningPolicy
    options: argparse.Namespace
    seconds: list[float]

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return self.policy.needs

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        selections: list[Selection] = []
        self.seconds.append(timed(self.options, lambda: selections.append(self.policy.select(tokens, keep))))
        return selections[0]


def scoring_ms(prompt: Prompt, items: tuple[Stage | Method, ...], options: argparse.Namespace) -> float:
    """Median milliseconds of a prefill in which policies score and select, in runs of their own."""
    stages = Plan.of(items, prompt.adapter.depth).stages
    taken: list[float] = []
    way = Pruned(prompt, tuple(replace(each, policy=Clocked(each.policy, options, taken)) for each in stages))
    with way.ready():
        for _ in range(3):
            way.prefill()
    way.cache = None
    runs = [sum(taken[start : start + len(stages)]) for start in range(len(stages), len(taken), len(stages))]
    return 1000 * median(runs)


def head_outputs(way: Variant) -> torch.Tensor:
    """What the head makes of the last position, for the prompt and each token after it, [1, 1 + steps, vocab]."""
    seen: list[torch.Tensor] = []
    head = way.adapter.lm_head
    assert head is not None
    handle = head.register_forward_hook(lambda module, args, output: seen.append(output[:, -1:].clone()))
    try:
        with way.ready():
            way.prefill()
            for _ in range(way.prompt.steps):
                way.step(way.prompt.token)
    finally:
        handle.remove()
        way.cache = None
    return torch.cat(seen, dim=1)


def described(way: str, times: tuple[Times, Times], memory: dict[str, int]) -> dict[str, float]:
    """Medians of one way."""
    prefill, decode = (1000 * median(kind[way]) for kind in times)
    return {"prefill_ms": prefill, "decode_ms_per_token": decode, "peak_memory": memory[way]}


def without_front(times: Times, way: str) -> list[float]:
    """The seconds of a way from the first decoder layer on."""
    return [whole - front for whole, front in zip(times[way], times["front"], strict=True)]


def compared(times: tuple[Times, Times], scoring: float | None = None) -> dict[str, dict[str, float]]:
    """The ratios of one plan.

    `layers_...` are those without what the model does before its first layer; `unscored_...`, where `scoring` is given,
    without those seconds of a prefill in which policies score and select.
    """
    found: dict[str, dict[str, float]] = {}
    for prefix, kind in zip(("", "decode_"), times, strict=True):
        if "ideal" in kind:
            found[f"{prefix}ratio_to_ideal"] = paired(kind["pruned"], kind["ideal"])
            if scoring is not None and not prefix:
                found["unscored_ratio_to_ideal"] = paired([each - scoring for each in kind["pruned"]], kind["ideal"])
            found[f"layers_{prefix}ratio_to_ideal"] = paired(*(without_front(kind, way) for way in ("pruned", "ideal")))
        found[f"{prefix}speedup_over_dense"] = paired(kind["dense"], kind["pruned"])
        if "usual" in kind and not prefix:
            found["usual_over_pruned"] = paired(kind["usual"], kind["pruned"])
    return found
