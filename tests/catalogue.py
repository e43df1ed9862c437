"""The catalogue: what is listed here goes through every invariant. A new policy or family is one line.

Published methods are in zoo.py.

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
from prunekit.adapter import adapter_for
from prunekit.models.tiny.builders import InputMaker, tiny_random
from prunekit.models.tiny.builders.common import IMAGE, VIDEO
from prunekit.patches import Encoded
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


BROKEN = {("llama4", "5.24.0"): "asks the output of its language model for `image_outputs`, which it has not"}
"""Families that a release of transformers cannot run itself, unpruned, and why."""

QUARTER = Keep(ratio=0.25)
PLANS: dict[str, Items] = {
    "random-input": (Stage("input", Random(seed=3), QUARTER),),
    "per-image": (Stage("input", Random(seed=4), Keep(ratio=0.25, per="image")),),
    "cross-text": (Stage("decoder.2", CrossAttention(), QUARTER),),
    "fastv": (FastV(keep=0.25, layer=3),),
    "star-embedding": (STAR(keep=0.25, visual_queries="embedding"),),
    "pyramid": (
        Stage("input", Random(), Keep(ratio=0.75)),
        Stage("decoder.1", UniformGrid(), Keep(ratio=0.5)),
        Stage("decoder.2", Random(seed=5), Keep(ratio=0.375)),
        Stage("decoder.3", CrossAttention(), QUARTER),
    ),
    "star": (STAR(keep=0.25),),
    "inside-the-encoder": (
        Stage("vision.0", SelfAttention(), Keep(ratio=0.75)),
        Stage("vision.1", Random(), Keep(ratio=0.5)),
        Stage("decoder.3", CrossAttention(), QUARTER),
    ),
}
RECORDS = {"star-embedding": 2, "star": 2, "pyramid": 4, "inside-the-encoder": 3}

BUDGETS = {"ratio": Keep(ratio=0.25), "tokens": Keep(tokens=5)}
ATTENTION = ("eager", "sdpa")
THOROUGH = ("llava",)  # the families that go through every test; all others through those of test_families.py


@dataclass(frozen=True)
class Family:
    """A model family: how to build a random tiny model, and the names of its parts.

    Attributes:
        decoder_layers: path of the decoder layers.
        encoder_layers: path of the encoder layers, empty where sessions cannot look inside.
        tokens: ids of the placeholders.
        merge: patches along the edge of the square that becomes a token.
        packed: whether the encoder runs on all images in one sequence.
        special: tokens before the patches in the encoder.
        video: whether it has videos.
        encoder_video: the method of the model (`image` or `video`) in which sessions look inside while videos run.
        sites: whether sessions prune inside the encoder.
        features: what its methods for images and videos take.
    """

    name: str
    sizes: tuple[tuple[str, Any], ...] = ()
    decoder_layers: str = "model.language_model.layers"
    encoder_layers: str = "model.vision_tower.encoder.layers"
    tokens: tuple[int, ...] = (IMAGE,)
    merge: int = 1
    packed: bool = False
    special: int = 0
    cls: bool = False
    video: bool = False
    encoder_video: str = ""
    sites: bool = True

    def build(self, attention: str) -> tuple[nn.Module, InputMaker]:
        model, make_inputs = tiny_random(self.name, seed=0, attn_implementation=attention, **dict(self.sizes))
        _sharpen(model)
        model.generation_config.eos_token_id = None  # every run generates as many tokens as it is asked for
        return model.eval(), make_inputs

    @property
    def image_token(self) -> int:
        return self.tokens[0]

    @property
    def per_image(self) -> int:
        """Visual tokens of one image, for families with one size."""
        tokens = adapter_for(subject(self.name, "eager").model).tokens_per_image
        assert tokens is not None
        return tokens

    def columns(self, alive: Tensor, inputs: Any) -> Tensor:
        """[tokens of all images] to [rows, columns]: which columns of the encoder are alive.

        Which patches a token is made of is the adapter's to say; tests/test_patch_maps.py checks it against gradients.
        """
        model = subject(self.name, "eager").model
        adapter, encoded = adapter_for(model), Encoded("image", dict(inputs))
        if self.packed:
            groups = adapter.patches_of_tokens(len(inputs["pixel_values"]), encoded)
            return torch.zeros(1, groups.numel(), dtype=torch.bool).index_fill(1, groups[alive].flatten(), True)
        vision = model.config.vision_config
        size, patch = (x if isinstance(x, int) else x[0] for x in (vision.image_size, vision.patch_size))
        groups = adapter.patches_of_tokens((size // patch) ** 2, encoded)
        patches = torch.empty(alive.numel() // len(groups), groups.numel(), dtype=torch.bool)
        patches[:, groups.flatten()] = alive.view(-1, len(groups)).repeat_interleave(self.merge**2, 1)
        return torch.cat([torch.ones(len(patches), self.special, dtype=torch.bool), patches], dim=1)


QWEN: dict[str, Any] = {
    "encoder_layers": "model.visual.blocks",
    "tokens": (IMAGE, VIDEO),
    "packed": True,
    "video": True,
    "encoder_video": "video",
}
FAMILIES = {
    family.name: family
    for family in (
        Family("llava", special=1, cls=True),
        Family("vipllava", special=1, cls=True),
        Family("llava_next", sites=False),
        Family("llava_onevision", tokens=(IMAGE, VIDEO), sites=False, video=True, encoder_video="video"),
        Family("llava_next_video", tokens=(IMAGE, VIDEO), sites=False, video=True, encoder_video="video"),
        Family(
            "video_llava",
            encoder_layers="model.image_tower.encoder.layers",
            tokens=(IMAGE, VIDEO),
            special=1,
            cls=True,
            video=True,
        ),
        Family("qwen2_vl", **QWEN),
        Family("qwen2_5_vl", sizes=(("std", 0.1),), **QWEN),
        Family("qwen3_vl", sizes=(("std", 0.1),), **QWEN),
        Family("qwen3_vl_moe", sizes=(("std", 0.1),), **QWEN),
        Family(
            "internvl",
            encoder_layers="model.vision_tower.encoder.layer",
            merge=2,
            special=1,
            cls=True,
            video=True,
            encoder_video="image",
        ),
        Family(
            "idefics3",
            encoder_layers="model.vision_model.encoder.layers",
            decoder_layers="model.text_model.layers",
            merge=2,
        ),
        Family(
            "smolvlm",
            encoder_layers="model.vision_model.encoder.layers",
            decoder_layers="model.text_model.layers",
            merge=2,
            video=True,
            encoder_video="image",
        ),
        Family("paligemma"),
        Family("gemma3", merge=2),
        Family("mistral3", encoder_layers="model.vision_tower.transformer.layers", packed=True),
        Family("aya_vision", merge=2),
        Family("cohere2_vision", merge=2),
        Family("ovis2", encoder_layers="model.vision_tower.transformer.encoder.layers", merge=2),
        Family("glm4v", encoder_layers="model.visual.blocks", packed=True, video=True, encoder_video="video"),
        Family("glm4v_moe", encoder_layers="model.visual.blocks", packed=True, video=True, encoder_video="video"),
        Family(
            "molmo2",
            sizes=(("std", 0.1),),
            encoder_layers="model.vision_tower.layers",
            sites=False,
            video=True,
            encoder_video="video",
        ),
        Family("deepseek_vl", encoder_layers="model.vision_model.encoder.layers"),
        Family("fast_vlm", encoder_layers=""),
        Family("perception_lm", encoder_layers="", tokens=(IMAGE, VIDEO), video=True),
    )
}


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
    """A family of the catalogue, built once."""
    return build(FAMILIES[family], attention)


def build(family: Family, attention: str) -> Subject:
    """The model under test and its twin, warmed up: transformers adds hooks of its own at the first call."""
    (model, make_inputs), (dense, _) = (family.build(attention) for _ in range(2))
    with torch.no_grad():
        for each in (model, dense):
            each(**make_inputs())
    return Subject(family, attention, model, dense, make_inputs)


def _sharpen(model: nn.Module) -> None:
    """Random weights make attention almost uniform; make it decide something, so that masking it is noticed."""
    for name, weight in model.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            weight.data.mul_(SHARPNESS / weight.data.std() / weight.shape[1] ** 0.5)


SHARPNESS = 1.5
