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
from prunekit.models.tiny.builders.common import IMAGE, VIDEO
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
    """A model family: how to build a random tiny model, and the names of its parts.

    Attributes:
        decoder: path of the decoder layers.
        encoder: path of the encoder layers, empty where sessions cannot look inside.
        tokens: ids of the placeholders.
        merge: patches along the edge of the square that becomes a token; `adjacent` if they follow each other.
        special: tokens before the patches in the encoder.
        video: whether it has videos; `encoder_video` whether sessions look inside the encoder while they run.
        sites: whether sessions prune inside the encoder.
        features: what its methods for images and videos take.
    """

    name: str
    sizes: tuple[tuple[str, Any], ...] = ()
    decoder: str = "model.language_model.layers"
    encoder: str = "model.vision_tower.encoder.layers"
    tokens: tuple[int, ...] = (IMAGE,)
    merge: int = 1
    adjacent: bool = False
    special: int = 0
    cls: bool = False
    video: bool = False
    encoder_video: bool = False
    sites: bool = True
    layouts: tuple[str, ...] = ()

    def build(self, attention: str) -> tuple[nn.Module, InputMaker]:
        model, make_inputs = tiny_random(self.name, seed=0, attn_implementation=attention, **dict(self.sizes))
        _sharpen(model)
        model.generation_config.eos_token_id = None  # every run generates as many tokens as it is asked for
        return model.eval(), make_inputs

    @property
    def features(self) -> dict[str, tuple[str, ...]]:
        return {
            "image": ("pixel_values", "pixel_values_images", "image_sizes", "image_grid_thw", "image_token_pooling", "image_grids", "batch_num_images", "pixel_attention_mask", "spatial_shapes", "image_merge_sizes"),
            "video": ("pixel_values_videos", "video_grid_thw", "video_token_pooling", "video_grids", "video_merge_sizes"),
        }

    def patches(self, alive: Tensor) -> Tensor:
        """[tokens of all images] to [images, special + patches]: which columns of the encoder are alive."""
        model = subject(self.name, "eager").model
        side = model.config.vision_config.image_size
        side = (side if isinstance(side, int) else side[0]) // self._patch(model) // self.merge
        grid = alive.view(-1, side, side).repeat_interleave(self.merge, 1).repeat_interleave(self.merge, 2).flatten(1)
        return torch.cat([torch.ones(len(grid), self.special, dtype=torch.bool), grid], dim=1)

    def _patch(self, model: Any) -> int:
        size = model.config.vision_config.patch_size
        return int(size if isinstance(size, int) else size[0])


FAMILIES = {
    family.name: family
    for family in (
        Family("llava", special=1, cls=True),
        Family("vipllava", special=1, cls=True),
        Family("llava_next", sites=False),
        Family("llava_onevision", tokens=(IMAGE, VIDEO), sites=False, video=True, encoder_video=True),
        Family("llava_next_video", tokens=(IMAGE, VIDEO), sites=False, video=True, encoder_video=True),
        Family("video_llava", encoder="model.image_tower.encoder.layers", tokens=(IMAGE, VIDEO), special=1, cls=True, video=True),
        Family("qwen2_vl", encoder="model.visual.blocks", tokens=(IMAGE, VIDEO), sites=False, video=True, encoder_video=True),
        Family("qwen2_5_vl", encoder="model.visual.blocks", tokens=(IMAGE, VIDEO), sites=False, video=True, encoder_video=True),
        Family("qwen3_vl", encoder="model.visual.blocks", tokens=(IMAGE, VIDEO), sites=False, video=True, encoder_video=True),
        Family("qwen3_vl_moe", encoder="model.visual.blocks", tokens=(IMAGE, VIDEO), sites=False, video=True, encoder_video=True),
        Family("internvl", encoder="model.vision_tower.encoder.layer", merge=2, special=1, cls=True, video=True),
        Family("idefics3", encoder="model.vision_model.encoder.layers", decoder="model.text_model.layers", merge=2),
        Family("smolvlm", encoder="model.vision_model.encoder.layers", decoder="model.text_model.layers", merge=2, video=True),
        Family("paligemma"),
        Family("gemma3", merge=2),
        Family("mistral3", encoder="model.vision_tower.transformer.layers", sites=False),
        Family("aya_vision", merge=2),
        Family("cohere2_vision", merge=2),
        Family("ovis2", encoder="model.vision_tower.transformer.encoder.layers", merge=2),
        Family("glm4v", encoder="model.visual.blocks", sites=False, video=True, encoder_video=True),
        Family("glm4v_moe", encoder="model.visual.blocks", sites=False, video=True, encoder_video=True),
        Family("molmo2", encoder="model.vision_tower.layers", sites=False, video=True, encoder_video=True),
        Family("deepseek_vl", encoder="model.vision_model.encoder.layers"),
        Family("fast_vlm", encoder=""),
        Family("perception_lm", encoder="", tokens=(IMAGE, VIDEO), video=True),
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
