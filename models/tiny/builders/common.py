"""What all builders of tiny random models share: sizes, and prompts with images and videos in them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator, Tensor, nn

__all__ = [
    "BOS",
    "EOS",
    "FIRST_WORD",
    "IMAGE",
    "PAD",
    "VIDEO",
    "InputMaker",
    "Media",
    "Sizes",
    "TinyInputs",
    "accepted",
    "concatenate",
    "random_model",
]

PAD, BOS, EOS, IMAGE, VIDEO = 0, 1, 2, 3, 4
SPECIAL = range(5, 16)
"""Ids a family may use for its own separators (start of image, newline, ...)."""
FIRST_WORD = 16
"""Ids from here on are words."""


@dataclass(frozen=True)
class Sizes:
    """Sizes that every family understands.

    Attributes:
        hidden, layers, heads, key_heads, intermediate, vocab: of the language model.
        vision_hidden, vision_layers, vision_heads: of the vision encoder.
        side: visual tokens along one edge of the default (square) image.
        std: of the random weights; large enough that attention is far from uniform.
    """

    hidden: int = 32
    layers: int = 4
    heads: int = 4
    key_heads: int = 2
    intermediate: int = 64
    vocab: int = 64
    vision_hidden: int = 32
    vision_layers: int = 3
    vision_heads: int = 4
    side: int = 4
    std: float = 0.2
    attn_implementation: str = "sdpa"


@dataclass(frozen=True)
class Media:
    """What one image or video adds to a prompt.

    Attributes:
        tokens: its ids in the prompt: placeholders, and separators if the family's processor writes any.
        tensors: its model inputs (`pixel_values`, `image_grid_thw`, ...).
    """

    tokens: list[int]
    tensors: dict[str, Tensor] = field(default_factory=dict)


class TinyInputs(dict[str, Tensor]):
    """Model inputs of a batch; `rows[i]` are those of sample i alone, without padding."""

    rows: list[TinyInputs]


MediaMaker = Callable[[Generator, int], Media]
"""Makes the n-th image (or video) of a sample; families with images of several sizes vary them with n."""

Join = Callable[[list[list[Media]]], dict[str, Tensor]]
"""Turns the media of each row into model inputs."""


def concatenate(media: list[list[Media]]) -> dict[str, Tensor]:
    """All tensors of all media, one after the other along their first axis."""
    flat = [item for row in media for item in row]
    names = dict.fromkeys(name for item in flat for name in item.tensors)
    return {name: torch.cat([item.tensors[name] for item in flat if name in item.tensors]) for name in names}


@dataclass(frozen=True)
class InputMaker:
    """Makes prompts: `[BOS] word <image> word <image> ... words`, rows padded at the left.

    Args:
        vocab: number of ids.
        image: makes an image.
        video: makes a video, None where the family has none.
        join: see `Join`.
        extras: further inputs made from ids and mask, each [batch, length] (token types).
    """

    vocab: int
    image: MediaMaker
    video: MediaMaker | None = None
    join: Join = concatenate
    extras: Callable[[Tensor, Tensor], dict[str, Tensor]] | None = None

    def __call__(
        self,
        batch: int = 1,
        images: int | Sequence[int] = 1,
        text: int | Sequence[int] = 6,
        seed: int = 0,
        videos: int | Sequence[int] = 0,
    ) -> TinyInputs:
        """Make inputs; numbers of images, videos and words are for all rows or one per row.

        Raises:
            ValueError: videos are asked of a family without them.
        """
        generator = torch.Generator().manual_seed(seed)
        each = zip(*(_per_row(value, batch) for value in (images, text, videos)), strict=True)
        rows, media = [], []
        for image_count, length, video_count in each:
            if video_count and self.video is None:
                raise ValueError("This family has no videos.")
            items = [self.image(generator, n) for n in range(image_count)]
            items += [self.video(generator, n) for n in range(video_count)] if self.video is not None else []
            words = torch.randint(FIRST_WORD, self.vocab, (length + len(items) + 1,), generator=generator).tolist()
            row = [BOS]
            for item in items:
                row += [words.pop(), *item.tokens]
            rows.append(row + words)
            media.append(items)
        inputs = self._inputs(rows, media)
        inputs.rows = [self._inputs([row], [items]) for row, items in zip(rows, media, strict=True)]
        return inputs

    def _inputs(self, rows: list[list[int]], media: list[list[Media]]) -> TinyInputs:
        longest = max(map(len, rows))
        ids = torch.tensor([[PAD] * (longest - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])
        extras = {} if self.extras is None else self.extras(ids, mask)
        pixels = self.join(media) if any(media) else {}
        return TinyInputs(input_ids=ids, attention_mask=mask, **extras, **pixels)


def _per_row(value: int | Sequence[int], batch: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * batch if len(values) == 1 else values


def accepted(model: nn.Module, *names: str) -> str:
    """The first of these names that the model's forward takes: releases of transformers call one thing by several."""
    parameters = inspect.signature(model.forward).parameters
    return next(name for name in names if name in parameters)


def random_model(model_class: Any, config: Any, sizes: Sizes) -> nn.Module:
    """A model whose matrices are drawn with `sizes.std`, in evaluation mode.

    Families scale their weights so differently that some random models attend almost uniformly: no test could see
    which tokens are there.
    """
    config._attn_implementation = sizes.attn_implementation
    model: nn.Module = model_class(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2 and "norm" not in name:
                parameter.normal_(0, sizes.std)
    return model
