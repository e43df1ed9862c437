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
        why = f" ({_UNKNOWN[kind]})" if kind in _UNKNOWN else ""
        raise CostError(
            f"What the processor of {kind!r} makes of an image is not known here{why}; known are"
            f" {', '.join(_FAMILIES)}. Use prunekit.flops.count with inputs from its processor: on the meta device the"
            " model needs no weights there either."
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
    """InternVL and Aya: 1 to 12 tiles, as near to the image's shape as can be; a thumbnail where there are several."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    edges = _edges(adapter)
    columns, rows = get_optimal_tiled_canvas(size, edges, image.get("min_tiles", 1), image.get("max_tiles", 12))
    return _cut(columns * rows, edges, images * batch)


def _enlarged(adapter: ModelAdapter, image: dict[str, Any], size: Size, images: int, batch: int) -> dict[str, Tensor]:
    """Cohere: the grid of 1 to 12 tiles that enlarges the image least, or else shrinks it least; and a thumbnail.

    The rule is that of transformers' processor, whose module cannot be imported without torchvision.
    """
    edges, most = _edges(adapter), image.get("max_tiles", 12)
    grids = [(columns, rows) for columns in range(1, most + 1) for rows in range(1, most // columns + 1)]
    scales = {
        (columns, rows): min(columns * edges[0] / size[1], rows * edges[0] / size[0])
        for columns, rows in sorted(grids, key=math.prod)
    }
    enough = [grid for grid, scale in scales.items() if scale >= 1]
    best = min(enough, key=scales.__getitem__) if enough else max(scales, key=scales.__getitem__)
    return _cut(math.prod(best), edges, images * batch)


def _cut(tiles: int, edges: Size, images: int) -> dict[str, Tensor]:
    return {"pixel_values": _pixels((tiles + (tiles > 1)) * images, 3, *edges)}


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
    """Qwen-VL and GLM-V: sides rounded to whole visual tokens, within limits on the number of pixels."""
    vision: Any = adapter.model.config.vision_config
    patch, frames, merge = vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size
    limits: dict[str, int] = {name: image[name] for name in ("min_pixels", "max_pixels") if name in image}
    resize = _glm_sides if adapter.model.config.model_type.startswith("glm") else _qwen_sides
    try:
        height, width = resize(size, patch * merge, frames, limits)
    except ValueError as error:
        raise CostError(f"An image of {size[0]}x{size[1]} pixels is refused by the processor: {error}.") from None
    grid = [1, height // patch, width // patch]
    channels = getattr(vision, "in_channels", None) or getattr(vision, "in_chans", 3)
    return {
        "pixel_values": _pixels(math.prod(grid) * images * batch, channels * frames * patch**2),
        "image_grid_thw": torch.tensor([grid] * (images * batch)),
    }


def _qwen_sides(size: Size, factor: int, frames: int, limits: dict[str, int]) -> Size:
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    height, width = smart_resize(*size, factor=factor, **limits)
    return height, width


def _glm_sides(size: Size, factor: int, frames: int, limits: dict[str, int]) -> Size:
    """An image counts as a clip of two frames: its pixels count as often."""
    from transformers.models.glm4v.image_processing_pil_glm4v import Glm4vImageProcessorPil, smart_resize

    usual: Any = Glm4vImageProcessorPil.size
    limits = {"min_pixels": usual["shortest_edge"], "max_pixels": usual["longest_edge"]} | limits
    height, width = smart_resize(frames, *size, temporal_factor=frames, factor=factor, **limits)
    return height, width


def _packed(adapter: ModelAdapter, image: dict[str, Any], size: Size, images: int, batch: int) -> dict[str, Tensor]:
    """Mistral 3: shrunk to a longest edge where it is larger, and its sides rounded up to whole visual tokens."""
    config: Any = adapter.model.config
    side = config.vision_config.patch_size * config.spatial_merge_size
    ratio = max(1.0, max(size) / int(image.get("longest_edge", max(_edges(adapter)))))
    height, width = (math.ceil(math.floor(edge / ratio) / side) * side for edge in size)
    if not height or not width:
        raise _vanished(size)
    return {
        "pixel_values": _pixels(images * batch, 3, height, width),
        "image_sizes": torch.tensor([(height, width)] * (images * batch)),
    }


def _vanished(size: Size) -> CostError:
    return CostError(
        f"An image of {size[0]}x{size[1]} pixels is refused: the processor shrinks its longer edge, and no pixel is"
        " left of the shorter one. Give an image_size that is less narrow."
    )


def _split(adapter: ModelAdapter, image: dict[str, Any], size: Size, images: int, batch: int) -> dict[str, Tensor]:
    """Idefics3 and SmolVLM: scaled to a longest edge, cut into tiles, and a thumbnail where there are several."""
    edge = _edges(adapter)[0]
    longest = int(image.get("longest_edge", 4 * edge))
    scale = longest / max(size)
    large, small = math.ceil(longest / edge), math.ceil(math.floor(min(size) * scale) / edge)
    if small == 0:
        raise _vanished(size)
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
    "video_llava": _resized,
    "deepseek_vl": _resized,
    "internvl": _tiled,
    "aya_vision": _tiled,
    "cohere2_vision": _enlarged,
    "llava_next": _pinpoints,
    "llava_next_video": _pinpoints,
    "llava_onevision": _pinpoints,
    "qwen2_vl": _patched,
    "qwen2_5_vl": _patched,
    "qwen3_5": _patched,
    "qwen3_5_moe": _patched,
    "qwen3_vl": _patched,
    "qwen3_vl_moe": _patched,
    "glm4v": _patched,
    "glm4v_moe": _patched,
    "glm46v": _patched,
    "mistral3": _packed,
    "idefics3": _split,
    "smolvlm": _split,
}

_UNKNOWN = {
    "fast_vlm": "its config does not say what size the encoder takes",
    "molmo2": "it cuts images into crops that overlap",
    "ovis2": "whether images are cut is said by each checkpoint's processor alone",
    "perception_lm": "its processor, which cuts images into tiles, cannot be imported without torchvision",
}
"""Families with an adapter that have no rule, and why."""
