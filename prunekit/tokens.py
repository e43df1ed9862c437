"""What a policy sees: `VisualTokens`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from prunekit.errors import BudgetError
from prunekit.keep import Keep
from prunekit.needs import Rows, States
from prunekit.patches import Image

__all__ = ["VisualTokens"]


@dataclass(frozen=True)
class VisualTokens:
    """The visual tokens of a batch at one site.

    Rows may hold different numbers of tokens: `valid` marks the real ones, which come first. At `vision.<i>` a batch
    row is an image; elsewhere it is a sample.

    Attributes:
        hidden: states at the site, [batch, visual, dim].
        source: original number of each token within its row, [batch, visual]; -1 where not valid.
        valid: which entries are tokens, [batch, visual].
        total: original number of visual tokens of each row (host integers).
        counts: number of tokens of each row now (host integers).
        attention: attention from the needed rows to these tokens, softmax over all keys that the row sees, in float32:
            [batch, visual] with `reduce="mean"`, otherwise [batch, heads, rows, visual] with rows that do not exist set
            to 0. Keys are the `Rows` of `needs` and the plain names of their queries.
        keys: attention keys, [batch, key heads, visual, head_dim], or None if not asked for.
        text: states of the text tokens, [batch, text, dim], or None if not asked for.
        text_valid: which entries of `text` are tokens, [batch, text].
        question: which of them come after the last visual token, [batch, text].
        states: what `Needs.states` asked for, by its `States`: [batch, tokens, dim], keys and values [batch, heads,
            tokens, head_dim].
        positions: column of each visual token in the prompt as it was sent, [batch, visual]; -1 where not valid. None
            inside the vision encoder.
        text_positions: the same of the text tokens, [batch, text]; given with `text`.
        patches: the patch that each token was made from, [batch, visual, 2]: the number of its tile within the row and
            its place in it; -1 for tokens without one (separators). None if not asked for.
        prefix: tokens before the patches of an image inside the vision encoder ([CLS], registers); 0 elsewhere.
        side: what `Needs.side` asked for.
        grid: rows and columns of the tokens of one image, if all images have the same; or None.
        per_image: visual tokens of one image, if all images have as many; or None.
        images: the images of each row, in order; None where they cannot be told apart.
        alive: tokens of each of these images that are left; None where that depends on what a policy decided.
        memory: scratch that all stages of one prefill share; policies themselves are frozen.
    """

    hidden: Float[Tensor, "batch visual dim"]
    source: Int[Tensor, "batch visual"]
    valid: Bool[Tensor, "batch visual"]
    total: tuple[int, ...]
    counts: tuple[int, ...]
    attention: Mapping[Rows | str, Float[Tensor, "..."]] = field(default_factory=dict)
    keys: Float[Tensor, "batch heads visual head_dim"] | None = None
    text: Float[Tensor, "batch text dim"] | None = None
    text_valid: Bool[Tensor, "batch text"] | None = None
    question: Bool[Tensor, "batch text"] | None = None
    states: Mapping[States, Float[Tensor, "..."]] = field(default_factory=dict)
    positions: Int[Tensor, "batch visual"] | None = None
    text_positions: Int[Tensor, "batch text"] | None = None
    patches: Int[Tensor, "batch visual 2"] | None = None
    prefix: int = 0
    side: Mapping[str, Tensor] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    per_image: int | None = None
    images: tuple[tuple[Image, ...], ...] | None = None
    alive: tuple[tuple[int, ...], ...] | None = None
    memory: dict[str, Any] = field(default_factory=dict)

    def budget(self, keep: Keep) -> tuple[int, ...]:
        """Tokens that `keep` asks of each row. A ratio never asks for more than the roundings of earlier stages left.

        Raises:
            BudgetError: a number of tokens is above what a row has left; a budget per image where images cannot be told
                apart.
        """
        if keep.per == "image":
            return tuple(map(sum, self.budget_per_image(keep)))
        asked = tuple(keep.count(total) for total in self.total)
        if keep.ratio is not None:
            return tuple(map(min, asked, self.counts))
        if any(count > there for count, there in zip(asked, self.counts, strict=True)):
            raise BudgetError(f"Keep({keep}): the rows have only {list(self.counts)} visual tokens left.")
        return asked

    def budget_per_image(self, keep: Keep) -> tuple[tuple[int, ...], ...]:
        """Tokens that a budget per image asks of each image of each row.

        Raises:
            BudgetError: images cannot be told apart; an earlier stage left an image a number that depends on the data.
        """
        if self.images is None:
            if any(self.total) and self.per_image is None:
                raise BudgetError(
                    f"Keep({keep}): where one image of a sample ends and the next begins is not known for this model or"
                    " these inputs; use a budget per sample."
                )
            size = self.per_image or 1
            images = tuple((Image(size, self.grid),) * (total // size) for total in self.total)
        else:
            images = self.images
        alive = self.alive
        if alive is None:
            if self.counts != self.total:
                raise BudgetError(
                    f"Keep({keep}): an earlier stage decided for whole samples, so that images have nothing certain"
                    " left; give that stage a budget per image too."
                )
            alive = tuple(tuple(image.tokens for image in row) for row in images)
        return tuple(
            tuple(min(keep.count(image.tokens), left) for image, left in zip(row, rest, strict=True))
            for row, rest in zip(images, alive, strict=True)
        )

    def left_per_image(self, keep: Keep | None) -> tuple[tuple[int, ...], ...] | None:
        """Tokens of each image after this budget, None where the policy decides how they are spread over images."""
        if keep is not None and keep.per == "image":
            return self.budget_per_image(keep)
        return tuple((count,) for count in self.budget(keep)) if keep is not None and self._one_each else None

    @property
    def _one_each(self) -> bool:
        return self.images is not None and all(len(row) == 1 for row in self.images)

    def image_number(self) -> Int[Tensor, "batch visual"]:
        """The number of each token's image within its row; 0 where images cannot be told apart."""
        if self.images is None:
            return self.source.clamp(min=0) // (self.per_image or 2**31)
        ends = [list(accumulate(image.tokens for image in row)) for row in self.images]
        widest = max(map(len, ends))
        bounds = torch.tensor([[*row, *[2**31] * (widest - len(row))] for row in ends], device=self.source.device)
        return (self.source[..., None] >= bounds[:, None]).sum(-1)
