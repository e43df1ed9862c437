"""Prompts whose placeholders and images do not fit together: refused before the model does so with less to say."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn

from prunekit._call import Sent
from prunekit.errors import PruningWarning, UnsupportedInputError

__all__ = ["check_counts", "explain_positions", "sends_images", "warn_dense", "wrap"]

PIXELS = (
    "pixel_values",
    "image_pixel_values",
    "image_patches",
    "image_embeds",
    "image_features",
    "image_hidden_states",
    "video_embeds",
)


def sends_images(inputs: dict[str, Any]) -> bool:
    """Whether pixels or features are among what a model is given."""
    return any(name.startswith(PIXELS) and value is not None for name, value in inputs.items())


def warn_dense(placeholders: Iterable[Tensor | None]) -> None:
    """Say that nothing is pruned in a prompt with these placeholders, [batch, length] each, and without images."""
    held = sum(int(each.sum()) for each in placeholders if each is not None)
    why = f"its {held} placeholders were given no images" if held else "there are no visual tokens to prune"
    warnings.warn(f"A prompt without images runs dense: {why}.", PruningWarning, 3)


def check_counts(sent: Sent, kind: str, sizes: tuple[int, ...] | None, total: int) -> None:
    """Refuse features that do not fill the placeholders of a call's rows with whole images.

    Some families encode videos as images, so that the number may be that of either or of both.

    Args:
        sent: the call's placeholders.
        kind: of what the features were made, `image` or `video`.
        sizes: visual tokens of each image, None where they cannot be told apart.
        total: visual tokens of all images.

    Raises:
        UnsupportedInputError: the numbers differ, or a row ends inside an image.
    """
    images = tuple(a - b for a, b in zip(sent.counts, sent.videos, strict=True))
    fitting = [rows for rows in (images, sent.videos, sent.counts) if sum(rows) == total]
    whole = sizes is None or any({*accumulate(rows)} <= {0, *accumulate(sizes)} for rows in fitting)
    if fitting and whole:
        return
    rows = sent.videos if kind == "video" and any(sent.videos) else images
    listed = "" if sizes is None else f" ({', '.join(map(str, sizes))})"
    raise UnsupportedInputError(
        f"The rows of input_ids hold {list(rows)} placeholders for {kind}s, {sum(rows)} in all, but {total} visual"
        f" tokens{listed} were made of the {kind}s that were given: every row needs its own, and the processor's number"
        " of placeholders."
    )


def explain_positions(core: nn.Module, hooks: ExitStack) -> None:
    """Name the cause where a model with M-RoPE cannot number a prompt; it does so before it encodes the images."""

    def explained(method: Callable[..., Any]) -> Callable[..., Any]:
        def numbered(*args: Any, **kwargs: Any) -> Any:
            try:
                return method(*args, **kwargs)
            except torch.OutOfMemoryError:
                raise
            except (StopIteration, IndexError, RuntimeError) as error:
                raise UnsupportedInputError(
                    f"The positions of this prompt cannot be numbered ({type(error).__name__}: {error}), as happens"
                    " where its placeholders do not fit the sizes of its images: every row needs its own, and the"
                    " processor's number of placeholders."
                ) from error

        return numbered

    wrap(core, "get_rope_index", explained, hooks)


def wrap(
    module: nn.Module, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]], hooks: ExitStack
) -> None:
    """Put `make(method)` in place of a module's method, if it has one of this name; `hooks` puts it back."""
    method = getattr(module, name, None)
    if method is None:
        return
    own = name in vars(module)
    setattr(module, name, functools.wraps(method)(make(method)))
    hooks.callback(setattr, module, name, method) if own else hooks.callback(delattr, module, name)
