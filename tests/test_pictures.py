"""What is known of processors: shapes like those of transformers' own; for every family a count or a named refusal."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import pytest
from catalogue import FAMILIES, subject
from PIL import Image

from prunekit import cost
from prunekit.adapter import adapter_for, supported_models
from prunekit.costs.pictures import _FAMILIES, _UNKNOWN, pictures
from prunekit.errors import CostError
from prunekit.models.tiny.builders import tiny_random
from prunekit.policies import FastV

SIZES = [(40, 40), (30, 90), (200, 50), (33, 47)]

NAMED = {"video_llava": {"return_legacy_image_output": False}}  # pixels under the name that the model takes
REFUSED = {
    "fast_vlm": "does not say what size",
    "molmo2": "overlap",
    "ovis2": "each checkpoint's processor",
    "perception_lm": "torchvision",
}
"""Families without a rule, and a part of the reason."""


def processor(name: str, **settings: Any) -> Any:
    """An image processor of transformers that needs no torchvision."""
    found = {
        "deepseek_vl": ("deepseek_vl.image_processing_pil_deepseek_vl", "DeepseekVLImageProcessorPil"),
        "glm4v": ("glm4v.image_processing_pil_glm4v", "Glm4vImageProcessorPil"),
        "got_ocr2": ("got_ocr2.image_processing_pil_got_ocr2", "GotOcr2ImageProcessorPil"),
        "llava_next": ("llava_next.image_processing_pil_llava_next", "LlavaNextImageProcessorPil"),
        "pixtral": ("pixtral.image_processing_pil_pixtral", "PixtralImageProcessorPil"),
        "qwen2_vl": ("qwen2_vl.image_processing_pil_qwen2_vl", "Qwen2VLImageProcessorPil"),
        "video_llava": ("video_llava.image_processing_video_llava", "VideoLlavaImageProcessor"),
    }
    module, kind = found[name]
    return getattr(import_module(f"transformers.models.{module}"), kind)(**settings)


def of_family(family: str) -> Any:
    """The processor of a family, set to the sizes of its tiny model."""
    config = subject(family, "sdpa").model.config
    vision = config.vision_config
    edge = getattr(vision, "image_size", 0)
    edge = edge if isinstance(edge, int) else edge[0]
    square = {"height": edge, "width": edge}
    if family == "llava_next_video":
        sizes = {"size": {"shortest_edge": edge}, "crop_size": square}
        return processor("llava_next", image_grid_pinpoints=config.image_grid_pinpoints, **sizes)
    if family == "mistral3":
        side = vision.patch_size * config.spatial_merge_size
        return processor("pixtral", size={"longest_edge": edge}, patch_size={"height": side, "width": side})
    if family in ("glm4v", "glm4v_moe", "qwen2_vl"):
        patches = {"patch_size": vision.patch_size, "merge_size": vision.spatial_merge_size}
        return processor(family.removesuffix("_moe"), temporal_patch_size=vision.temporal_patch_size, **patches)
    if family == "video_llava":
        return processor(family, size={"shortest_edge": edge}, crop_size=square)
    if family == "deepseek_vl":
        return processor(family, size=square)
    return processor("got_ocr2", size=square, crop_to_patches=True)


@pytest.mark.parametrize(
    "family",
    ["aya_vision", "deepseek_vl", "glm4v", "glm4v_moe", "internvl", "llava_next_video", "mistral3", "qwen2_vl",
     "video_llava"],
)  # fmt: skip
def test_shapes_are_those_of_the_processor(family: str) -> None:
    adapter, made = adapter_for(subject(family, "sdpa").model), of_family(family)
    noise, fixed = np.random.default_rng(0), family in ("deepseek_vl", "video_llava")
    for size in SIZES:
        image = Image.fromarray(noise.integers(0, 256, (*size, 3), np.uint8))
        real = made([image, image], return_tensors="pt", **NAMED.get(family, {}))
        found, _ = pictures(adapter, {}, None if fixed else size, 2, 1)
        assert found["pixel_values"].shape == real["pixel_values"].shape, size
        for name in ("image_grid_thw", "image_sizes"):
            assert (name in found) == (name in real)
            if name in found:
                assert found[name].tolist() == real[name].tolist(), (size, name)


@pytest.mark.parametrize(
    ("size", "tiles"),
    [((32, 32), 1), ((20, 32), 1), ((32, 64), 2 + 1), ((33, 64), 4 + 1), ((96, 40), 6 + 1), ((9000, 9000), 9 + 1),
     ((10, 9000), 12 + 1)],
)  # fmt: skip
def test_tiles_of_cohere(size: tuple[int, int], tiles: int) -> None:
    """Worked out by hand for tiles of 32: the grid that enlarges least, or where none is large enough shrinks least."""
    adapter = adapter_for(subject("cohere2_vision", "sdpa").model)
    found, _ = pictures(adapter, {}, size, 1, 1)
    assert found["pixel_values"].shape == (tiles, 3, 32, 32)


def test_every_adapter_of_a_family_has_a_rule() -> None:
    """A new adapter fails here until its images are known, or it is listed with the reason why they are not."""
    assert set(supported_models()) <= _FAMILIES.keys() | _UNKNOWN.keys()
    assert not _FAMILIES.keys() & _UNKNOWN.keys()
    assert set(REFUSED) == set(_UNKNOWN)


def test_a_family_outside_the_catalogue() -> None:
    """GLM-4.6V has the adapter and the processor of GLM-4.1V."""
    from transformers.models.glm46v.image_processing_pil_glm46v import Glm46VImageProcessorPil, smart_resize

    config = tiny_random("glm46v")[0].config
    side = config.vision_config.patch_size * config.vision_config.spatial_merge_size
    usual = Glm46VImageProcessorPil.size
    limits = {"min_pixels": usual["shortest_edge"], "max_pixels": usual["longest_edge"]}
    height, width = smart_resize(2, 40, 90, temporal_factor=2, factor=side, **limits)
    found = cost(config, image_size=(40, 90))
    assert found.prompt["visual_tokens"] == height * width // side**2


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_count_or_a_named_refusal(family: str) -> None:
    config = subject(family, "sdpa").model.config
    patch = getattr(config.vision_config, "patch_size", None)
    size = (8 * patch, 12 * patch) if FAMILIES[family].packed and isinstance(patch, int) else None
    if family in REFUSED:
        with pytest.raises(CostError, match=rf"'{family}'.*{REFUSED[family]}.*prunekit\.flops\.count"):
            cost(config)
        return
    found = cost(config, FastV(keep=0.5, layer=2), images=2, image_size=size, text_tokens=12, decode_tokens=2)
    (pruned,) = found.pruned
    assert found.prompt["visual_tokens"] >= 2
    assert 0 < pruned.cost.macs["prefill"] < found.dense.cost.macs["prefill"]
    assert pruned.cost.macs["decode"] > 0  # not always fewer: in a sliding layer a pruned cache holds all it was given
    assert pruned.cost.macs["vision"] == found.dense.cost.macs["vision"] > 0
