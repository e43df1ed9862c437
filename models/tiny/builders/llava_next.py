"""LLaVA-NeXT: a thumbnail and tiles seen by CLIP, packed without padding and with newlines; a projector, Llama."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import pad

from prunekit.models.tiny.builders.common import IMAGE, VIDEO, InputMaker, Media, Sizes, concatenate, random_model
from prunekit.models.tiny.builders.decoders import vision_sizes
from prunekit.models.tiny.builders.llava import llama

GRIDS = [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1), (1, 3)]
"""Rows and columns of tiles an image may be cut into."""


def llava_next(patch_size: int = 4, tiles: int = 2, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """The default image is cut into `tiles` x `tiles` tiles (1 or 2); images 1 and 2 of a prompt lose their padding."""
    from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration

    s = Sizes(**sizes)
    cut = Anyres(s.side, tiles, patch_size)
    config = LlavaNextConfig(
        vision_config=clip(s, cut.edge, patch_size),
        text_config=llama(s),
        image_token_index=IMAGE,
        image_grid_pinpoints=cut.pinpoints,
        image_seq_length=cut.tile**2,
    )
    return random_model(LlavaNextForConditionalGeneration, config, s), InputMaker(s.vocab, cut.image, join=padded)


@dataclass(frozen=True)
class Anyres:
    """Images of any resolution, cut into tiles of equal size.

    Args:
        side: visual tokens along one edge of the default image, without its thumbnail.
        tiles: tiles along that edge.
        patch_size: of the encoder.
        most: images of more than this number of tiles are shrunk to it; none are when it is None.
    """

    side: int
    tiles: int
    patch_size: int
    most: int | None = None

    def __post_init__(self) -> None:
        if self.side % self.tiles or self.tiles not in (1, 2):
            raise ValueError(f"{self.side} visual tokens are not cut into {self.tiles} tiles.")

    @property
    def tile(self) -> int:
        """Visual tokens along the edge of a tile."""
        return self.side // self.tiles

    @property
    def edge(self) -> int:
        """Pixels along the edge of a tile."""
        return self.tile * self.patch_size

    @property
    def pinpoints(self) -> list[list[int]]:
        """The sizes images are brought to; a single tile is one only where the default image needs it."""
        return [[rows * self.edge, columns * self.edge] for rows, columns in GRIDS[self.tiles > 1 :]]

    def image(self, generator: Generator, number: int) -> Media:
        """The default image, one padded at its sides and one padded above and below, in turn."""
        grid, size = [
            ((self.tiles, self.tiles), (self.tiles, self.tiles)),
            ((1, 3), (10, 21)),
            ((2, 2), (2, 3)),
        ][number % 3]
        pixels = torch.randn(1, 1 + grid[0] * grid[1], 3, self.edge, self.edge, generator=generator)
        height, width = (length * self.edge for length in size)
        rows, columns = self.kept(grid[0] * self.tile, grid[1] * self.tile, height, width)
        tokens = self.tile**2 + rows * (columns + 1)
        return Media([IMAGE] * tokens, {"pixel_values": pixels, "image_sizes": torch.tensor([[height, width]])})

    def kept(self, rows: int, columns: int, height: int, width: int) -> tuple[int, int]:
        """What is left of a grid of tokens without the padding of an image of this size."""
        if width / height > columns / rows:
            rows -= (rows - int(round(height * columns / width, 7))) // 2 * 2
        else:
            columns -= (columns - int(round(width * rows / height, 7))) // 2 * 2
        excess = (rows * columns / (self.most * self.tile**2)) ** 0.5 if self.most else 1.0
        return (int(rows // excess), int(columns // excess)) if excess > 1.1 else (rows, columns)


def clip(s: Sizes, image_size: int, patch_size: int) -> Any:
    """CLIP of these sizes."""
    from transformers import CLIPVisionConfig

    return CLIPVisionConfig(
        **vision_sizes(s), image_size=image_size, patch_size=patch_size, projection_dim=s.vision_hidden
    )


def padded(media: list[list[Media]]) -> dict[str, Tensor]:
    """All tensors, one after the other; those of the same name are filled up with zeros to the same size."""
    flat = [item for row in media for item in row]
    most: dict[str, list[int]] = {}
    for item in flat:
        for name, tensor in item.tensors.items():
            most[name] = [max(sizes) for sizes in zip(tensor.shape, most.get(name, tensor.shape), strict=True)]

    def fill(name: str, tensor: Tensor) -> Tensor:
        missing = [more - length for more, length in zip(most[name][1:], tensor.shape[1:], strict=True)]
        return pad(tensor, [amount for after in reversed(missing) for amount in (0, after)])

    return concatenate(
        [[Media(item.tokens, {name: fill(name, tensor) for name, tensor in item.tensors.items()}) for item in flat]]
    )


def frames(generator: Generator, number: int, edge: int, tokens: int) -> Media:
    """A video of `number` square frames and `tokens` visual tokens."""
    pixels = torch.randn(1, number, 3, edge, edge, generator=generator)
    return Media([VIDEO] * tokens, {"pixel_values_videos": pixels})
