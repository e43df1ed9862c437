"""Presets: what confirms them, and images cut as the families' own processors cut them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image
from transformers import (
    CONFIG_MAPPING,
    CLIPImageProcessor,
    Gemma3ImageProcessor,
    GotOcr2ImageProcessor,
    LlavaNextImageProcessor,
    LlavaOnevisionImageProcessor,
    Qwen2VLImageProcessor,
    SiglipImageProcessor,
    SmolVLMImageProcessor,
)

from prunekit import cost
from prunekit.adapter import adapter_for
from prunekit.costs.pictures import pictures
from prunekit.costs.skeleton import build
from prunekit.presets import Preset, presets

TOKENS = {
    "gemma3-4b": 16**2,  # 64x64 patches, pooled to mm_tokens_per_image
    "gemma3-12b": 16**2,
    "internvl3-8b": 16**2,  # one tile of 32x32 patches, four to a token
    "llava-1.5-7b": 24**2,
    "llava-1.5-13b": 24**2,
    "llava-next-7b": 24**2 + 48 * (48 + 1),  # a thumbnail, and two by two tiles with the end of every line
    "llava-onevision-7b": 27**2 + 27 * (27 + 1),
    "paligemma2-3b": 16**2,
    "qwen2-vl-7b": 24**2,  # 48x48 patches, four to a token
    "qwen2.5-vl-3b": 24**2,
    "qwen2.5-vl-7b": 24**2,
    "qwen2.5-vl-72b": 24**2,
    "qwen3-vl-8b": 24**2,
    "smolvlm2-2.2b": (4 * 4 + 1) * 9**2,  # 27x27 patches a tile, nine to a token
}
"""Visual tokens of the default image."""

SIZES = ((384, 384), (336, 1000), (1200, 500), (701, 699), (90, 300), (2000, 1500))
FIXED = ("llava", "paligemma", "gemma3")
"""Families whose processor makes one size of all images."""


def processor(preset: Preset) -> Any:
    """The image processor of the family with the settings of the preset."""
    config, image = preset.config, preset.image
    vision = config["vision_config"]
    match config["model_type"]:
        case "llava":
            edge = vision["image_size"]
            return CLIPImageProcessor(size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge})
        case "paligemma":
            return SiglipImageProcessor(size={"height": vision["image_size"], "width": vision["image_size"]})
        case "gemma3":
            return Gemma3ImageProcessor(size={"height": vision["image_size"], "width": vision["image_size"]})
        case "internvl":
            height, width = vision["image_size"]
            limits = {"min_patches": image["min_tiles"], "max_patches": image["max_tiles"]}
            return GotOcr2ImageProcessor(size={"height": height, "width": width}, crop_to_patches=True, **limits)
        case "llava_next":
            edge, grid = vision["image_size"], config["image_grid_pinpoints"]
            sizes = {"size": {"shortest_edge": edge}, "crop_size": {"height": edge, "width": edge}}
            return LlavaNextImageProcessor(image_grid_pinpoints=grid, **sizes)
        case "llava_onevision":
            edge, grid = vision["image_size"], config["image_grid_pinpoints"]
            return LlavaOnevisionImageProcessor(image_grid_pinpoints=grid, size={"height": edge, "width": edge})
        case "smolvlm":
            longest = {"longest_edge": image["longest_edge"]}
            return SmolVLMImageProcessor(size=longest, max_image_size={"longest_edge": vision["image_size"]})
        case _:
            patch = {"patch_size": vision["patch_size"], "merge_size": vision["spatial_merge_size"]}
            size = {"shortest_edge": image["min_pixels"], "longest_edge": image["max_pixels"]}
            return Qwen2VLImageProcessor(size=size, temporal_patch_size=vision["temporal_patch_size"], **patch)


def configuration(name: str) -> Any:
    values = dict(presets()[name].config)
    return CONFIG_MAPPING[values.pop("model_type")](**values)


@pytest.mark.parametrize("name", presets())
def test_images_are_cut_as_the_processor_cuts_them(name: str) -> None:
    preset = presets()[name]
    made, adapter = processor(preset), adapter_for(build(configuration(name), name))
    sizes = [tuple(preset.image["default"]), *(() if preset.config["model_type"] in FIXED else SIZES)]
    for size in sizes:
        picture = Image.fromarray(np.zeros((*size, 3), np.uint8))
        expected = made(images=[picture], return_tensors="pt")
        found, said = pictures(adapter, preset.image, size, images=1, batch=1)
        assert said == size
        assert found["pixel_values"].shape == expected["pixel_values"].shape, size
        for key in ("image_grid_thw", "image_sizes"):
            if key in found:
                assert found[key].tolist() == expected[key].tolist()


@pytest.mark.parametrize("name", presets())
def test_presets_are_the_published_models(name: str) -> None:
    preset, found = presets()[name], cost(name, "STAR", budget=0.25, decode_tokens=2)
    assert found.parameters == pytest.approx(preset.parameters * 1e9, abs=5.1e6)  # published with two decimals
    size = float(name.rpartition("-")[2].removesuffix("b"))
    assert 0.9 * size < found.parameters / 1e9 < 1.35 * size
    assert found.prompt["visual_tokens"] == TOKENS[name]
    dense, pruned = found.dense, found.pruned[0]
    assert pruned.cost.total_macs < 0.75 * dense.cost.total_macs + dense.cost.macs["vision"]
    assert pruned.cost.macs["vision"] == dense.cost.macs["vision"]
    assert 0 < pruned.kv_bytes < dense.kv_bytes < dense.kv_bytes_at_end


@pytest.mark.parametrize("name", presets())
def test_a_preset_says_what_confirms_it(name: str) -> None:
    preset = presets()[name]
    assert preset.name == name
    assert preset.hub.count("/") == 1
    assert preset.source.endswith(".")
    assert not preset.about.endswith(".")
