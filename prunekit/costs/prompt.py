"""A prompt for a model without weights: how many visual tokens its images become, and where the text is."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunekit.adapter import ModelAdapter
from prunekit.costs.known import KnownValues
from prunekit.costs.pictures import Size, pictures
from prunekit.costs.repeats import Repeats
from prunekit.costs.skeleton import Skeleton
from prunekit.errors import CostError, PrunekitError
from prunekit.flops import on_device

__all__ = ["Prompt", "make_prompt"]


@dataclass(frozen=True)
class Prompt:
    """Inputs of a batch whose rows are alike.

    Attributes:
        inputs: by name, on the CPU; pixels take no memory.
        visual: visual tokens of a row.
        text: other tokens of a row.
        size: height and width of an image.
    """

    inputs: dict[str, Tensor]
    visual: int
    text: int
    size: Size


def make_prompt(
    skeleton: Skeleton, adapter: ModelAdapter, text: int, images: int, size: Size | None, batch: int
) -> Prompt:
    """One token of text, the images, each between two tokens of text, and the rest of the text.

    Raises:
        CostError: numbers that no prompt can have, or images that this model cannot have.
    """
    for name, value, least in (("images", images, 1), ("batch", batch, 1), ("text_tokens", text, 2 * images + 2)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            why = " (one before the images, two around each of them, one after)" if name == "text_tokens" else ""
            raise CostError(f"{name}={value!r}: allowed are whole numbers from {least}{why}.")
    if size is not None and (len(size) != 2 or any(not isinstance(edge, int) or edge < 1 for edge in size)):
        raise CostError(f"image_size={size!r}: allowed are a height and a width in pixels, such as (672, 672).")
    tensors, shown = pictures(adapter, skeleton.image, size, images, batch)
    tokens = _tokens(adapter, tensors, images * batch, shown)
    ids = _ids(adapter, tokens[:images], text).expand(batch, -1).contiguous()
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), **tensors}
    takes = inspect.signature(adapter.model.forward).parameters
    of_images = (ids == adapter.image_ids[0]).long()
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in takes:
            inputs[name] = of_images
    return Prompt(inputs, sum(tokens[:images]), text, shown)


def _tokens(adapter: ModelAdapter, tensors: dict[str, Tensor], images: int, size: Size) -> tuple[int, ...]:
    """Visual tokens of each image: those that the model makes."""
    core: Any = adapter.core
    takes = inspect.signature(core.get_image_features).parameters
    with torch.no_grad(), KnownValues(), Repeats(adapter).passing_over():
        inputs = on_device(adapter.model, {name: value for name, value in tensors.items() if name in takes})
        try:
            output = core.get_image_features(**inputs)
        except PrunekitError:
            raise
        except (RuntimeError, ValueError, TypeError, IndexError, NotImplementedError) as error:
            raise CostError(
                f"Images of {size[0]}x{size[1]} pixels do not fit {type(adapter.model).__name__}"
                f" ({type(error).__name__}: {' '.join(str(error).split())[:160]})."
            ) from None
        made = getattr(output, "pooler_output", None)
        features = output if made is None else made
        found = adapter.image_tokens(features, inputs)
        if found is None:  # the features of all images in one row
            found = (features.shape[:-1].numel() // images,) * images
    if len(found) != images:  # several tiles an image
        found = tuple(sum(found[i::1][: len(found) // images]) for i in range(0, len(found), len(found) // images))
    return tuple(found)


def _ids(adapter: ModelAdapter, tokens: tuple[int, ...], text: int) -> Tensor:
    """Token ids of a row, [1, length]."""
    config: Any = adapter.model.config
    special = {value for name, value in vars(config).items() if name.endswith(("_id", "_index")) and value is not None}
    word = next(number for number in range(1, 1000) if number not in special)
    start, end = (getattr(config, f"vision_{name}_token_id", None) or word for name in ("start", "end"))
    row = [word]
    for number in tokens:
        row += [start, *[adapter.image_ids[0]] * number, end]
    return torch.tensor([[*row, *[word] * (text - 1 - 2 * len(tokens))]])
