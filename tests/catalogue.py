"""The catalogue: what is listed here goes through every invariant. A new policy or family is one line.

`POLICIES` builds the stages of an entry for a budget, `FAMILIES` names the parts of a tiny random model. Nothing of the
adapters is used, so that an adapter that names the wrong module is found out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from prunekit import Keep, Method, Stage
from prunekit.models.tiny.builders import InputMaker, tiny_random
from prunekit.policies import STAR, CrossAttention, FasterVLM, FastV, Random, SelfAttention, UniformGrid

torch.set_num_threads(1)  # these models are so small that threads only wait for each other

Items = tuple[Stage | Method, ...]


@dataclass(frozen=True)
class Policy:
    """One entry: how to build it, and how many records it leaves per prefill."""

    build: Callable[[Keep], Items]
    records: int = 1
    budget_per_image: bool = False  # prunes image by image: a number of tokens has no meaning for several images


def _at(site: str, policy: Any, **kwargs: Any) -> Policy:
    return Policy(lambda keep: (Stage(site, policy, keep),), **kwargs)


def _chain(*stages: tuple[str, Any, float]) -> Callable[[Keep], Items]:
    """Several stages; the last one has the budget, those before a ratio of their own."""
    *before, (site, policy, _) = stages
    return lambda keep: (*(Stage(s, p, Keep(ratio=ratio)) for s, p, ratio in before), Stage(site, policy, keep))


POLICIES = {
    "random-input": _at("input", Random(seed=3)),
    "random-vision": _at("vision.0", Random(seed=3), budget_per_image=True),
    "grid-decoder": _at("decoder.1", UniformGrid()),
    "self-visual-input": _at("input", SelfAttention()),
    "self-embedding-input": _at("input", SelfAttention(queries="embedding")),
    "self-cls-vision": _at("vision.1", SelfAttention(queries="cls"), budget_per_image=True),
    "cross-text": _at("decoder.2", CrossAttention()),
    "cross-instruction": _at("decoder.1", CrossAttention(queries="instruction")),
    "fastv": Policy(lambda keep: (FastV(keep=keep, layer=2),)),
    "fastervlm": Policy(lambda keep: (FasterVLM(keep=keep),)),
    "star": Policy(lambda keep: (STAR(keep=keep),), records=2),
    "every-site": Policy(
        _chain(
            ("vision.0", Random(seed=1), 0.875),
            ("input", SelfAttention(queries="embedding"), 0.75),
            ("decoder.1", UniformGrid(), 0.625),
            ("decoder.3", CrossAttention(queries="last"), 0.0),
        ),
        records=4,
    ),
}

BUDGETS = {"ratio": Keep(ratio=0.25), "tokens": Keep(tokens=5)}
ATTENTION = ("eager", "sdpa")


@dataclass(frozen=True)
class Family:
    """A model family: a random tiny model and the names of its parts."""

    name: str
    sizes: tuple[tuple[str, Any], ...] = ()
    decoder: str = "model.language_model.layers"
    encoder: str = "model.vision_tower.encoder.layers"
    text_model: str = "model.language_model"
    tower: str = "model.vision_tower"
    specials: int = 1  # tokens before the patches in the encoder

    def build(self, attention: str) -> tuple[nn.Module, InputMaker]:
        model, make_inputs = tiny_random(self.name, seed=0, **dict(self.sizes))
        _sharpen(model)
        model.set_attn_implementation(attention)
        model.generation_config.eos_token_id = None  # every run generates as many tokens as it is asked for
        return model.eval(), make_inputs

    @property
    def config(self) -> Any:
        return subject(self.name, "eager").model.config

    @property
    def image_token(self) -> int:
        return int(self.config.image_token_id)

    @property
    def per_image(self) -> int:
        return int(self.config.vision_config.image_size // self.config.vision_config.patch_size) ** 2


FAMILIES = {"llava": Family("llava")}


@dataclass(frozen=True, eq=False)
class Subject:
    """A model for sessions, and a second one with the same weights that no session ever touches."""

    family: Family
    attention: str
    model: Any
    dense: Any
    make_inputs: InputMaker


@cache
def subject(family: str, attention: str) -> Subject:
    """The model under test and its twin, warmed up: transformers adds hooks of its own at the first call."""
    (model, make_inputs), (dense, _) = (FAMILIES[family].build(attention) for _ in range(2))
    with torch.no_grad():
        for each in (model, dense):
            each(**make_inputs())
    return Subject(FAMILIES[family], attention, model, dense, make_inputs)


def _sharpen(model: nn.Module) -> None:
    """Random weights make attention almost uniform; make it decide something, so that masking it is noticed."""
    for name, weight in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight.data.mul_(SHARPNESS / weight.data.std() / weight.shape[1] ** 0.5)


SHARPNESS = 1.5
