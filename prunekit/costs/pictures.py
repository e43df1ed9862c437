"""What a processor makes of images of some size, in shapes alone.

The rules by which processors resize and cut images are those of transformers' own image processors, whose functions are
called where they can be had without an image.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from prunekit.adapter import ModelAdapter
from prunekit.errors import CostError

__all__ = ["pictures"]

Size = tuple[int, int]
"""Height and width in pixels."""


def pictures(
    adapter: ModelAdapter, image: dict[str, Any], size: Size | None, images: int, batch: int
) -> tuple[dict[str, Tensor], Size]:
    """Tensors on the CPU that stand for the images of a batch, pixels without memory of their own, and the size.

    Args:
        adapter: of the model.
        image: what is known of the processor, see `Preset.image`.
        size: height and width of each image; None for a size that suits the model.
        images: of each sample.
        batch: samples.

    Raises:
        CostError: this family's images are not known, or cannot have this size.
    """
    kind = adapter.model.config.model_type
    if kind not in _FAMILIES:
        raise CostError(
            f"What the processor of {kind!r} makes of an image is not known here; known are {', '.join(_FAMILIES)}."
            " Give prunekit.flops.count a model on the meta device and inputs from its processor."
        )
    default: Size = tuple(image.get("default") or _edges(adapter))
    return _FAMILIES[kind](adapter, image, size or default, images, batch), size or default


def _edges(adapter: ModelAdapter) -> Size:
    size = getattr(adapter.model.config.vision_config, "image_size", 672)
    height, width = (size, size) if isinstance(size, int) else size
    return int(height), int(width)


def _pixels(*shape: int) -> Tensor:
    return torch.ones(()).expand(shape)


def _resized(adapter: ModelAdapter, image: dict[str, Any], size: Size, images: int, batch: int) -> dict[str, Tensor]:
    """Every image is resized to what the encoder takes."""
    edges = _edges(adapter)
    if size != edges:
        raise CostError(
            f"The processor of {adapter.model.config.model_type!r} resizes every image to {edges[0]}x{edges[1]}; an"
            f" image size of {size[0]}x{size[1]} makes no difference, leave it out."
        )
    return {"pixel_values": _pixels(images * batch, 3, *edges)}


def _tiled(adapter: ModelAdapter, image: dict[str, Any], size: Size, images: int, batch: int) -> dict[str, Tensor]:
    """InternVL: 1 to 12 tiles as near to the image's shape as can be, and a thumbnail where there are several."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    edges = _edges(adapter)
    columns, rows = get_optimal_tiled_canvas(size, edges, image.get("min_tiles", 1), image.get("max_tiles", 12))
    tiles = columns * rows + (columns * rows > 1)
    return {"pixel_values": _pixels(tiles * images * batch, 3, *edges)}


def _pinpoints(adapter: ModelAdapter, image: dict[str, Any], size: Size, images: int, batch: int) -> dict[str, Tensor]:
    """LLaVA-NeXT and LLaVA-OneVision: a thumbnail and the tiles of the resolution that suits the image best."""
    from transformers.models.llava_next.modeling_llava_next import image_size_to_num_patches

    config: Any = adapter.model.config
    edge, grouped = _edges(adapter)[0], config.model_type == "llava_onevision"
    tiles = int(image_size_to_num_patches(list(size), config.image_grid_pinpoints, edge))
    if grouped and images > 1:
        tiles = 1  # an image among several of its sample is not tiled
    numbers = {"batch_num_images": torch.full((batch,), images)} if grouped else {}
    return {
        "pixel_values": _pixels(images * batch, tiles, 3, edge, edge),
        "image_sizes": torch.tensor([size] * (images * batch)),
        **numbers,
    }


def _patched(adapter: ModelAdapter, image: dict[str, Any], size: Size, images: int, batch: int) -> dict[str, Tensor]:
    """Qwen-VL: sides rounded to whole visual tokens, within limits on the number of pixels."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    vision: Any = adapter.model.config.vision_config
    patch, frames, merge = vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size
    limits = {name: image[name] for name in ("min_pixels", "max_pixels") if name in image}
    try:
        height, width = smart_resize(*size, factor=patch * merge, **limits)
    except ValueError as error:
        raise CostError(f"An image of {size[0]}x{size[1]} pixels is refused by the processor: {error}.") from None
    grid = [1, height // patch, width // patch]
    channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", 3)
    return {
        "pixel_values": _pixels(math.prod(grid) * images * batch, channels * frames * patch**2),
        "image_grid_thw": torch.tensor([grid] * (images * batch)),
    }


def _split(adapter: ModelAdapter, image: dict[str, Any], size: Size, images: int, batch: int) -> dict[str, Tensor]:
    """Idefics3 and SmolVLM: scaled to a longest edge, cut into tiles, and a thumbnail where there are several."""
    edge = _edges(adapter)[0]
    longest = int(image.get("longest_edge", 4 * edge))
    scale = longest / max(size)
    large, small = math.ceil(longest / edge), math.ceil(math.floor(min(size) * scale) / edge)
    tiles = large * small + (large * small > 1)
    return {
        "pixel_values": _pixels(batch, images * tiles, 3, edge, edge),
        "pixel_attention_mask": torch.ones((), dtype=torch.long).expand(batch, images * tiles, edge, edge),
    }


_FAMILIES: dict[str, Callable[..., dict[str, Tensor]]] = {
    "llava": _resized,
    "vipllava": _resized,
    "paligemma": _resized,
    "gemma3": _resized,
    "internvl": _tiled,
    "llava_next": _pinpoints,
    "llava_onevision": _pinpoints,
    "qwen2_vl": _patched,
    "qwen2_5_vl": _patched,
    "qwen3_vl": _patched,
    "qwen3_vl_moe": _patched,
    "idefics3": _split,
    "smolvlm": _split,
}
