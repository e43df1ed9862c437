"""Encoder layers that get fewer patches: what they are handed is cut, and what they return written over all patches."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import UnsupportedInputError
from prunekit.masks import cut_mask
from prunekit.sequence import gather, scatter

__all__ = ["Shorter"]


@dataclass
class Shorter:
    """The columns of an encoder that are left after a stage.

    Attributes:
        packed: whether all images are in one sequence.
        prefix: columns before the patches of each image.
        patches: patches of a row of the encoder's batch before any was dropped.
        columns: those that are left, [rows, left]; -1 is padding.
        mask: added to the logits of later layers, [rows, 1, 1, left]; None where there is nothing to hide or weigh.
    """

    packed: bool
    prefix: int
    patches: int
    columns: Tensor
    mask: Tensor | None
    full: Tensor | None = None  # the full-length input of the layer that is running
    bounds: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def cut(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a layer for the columns that are left."""
        names = ["hidden_states", *["attention_mask"] * bool(len(args) > 1), *["" for _ in args[2:]]][: len(args)]
        self.full = args[0] if args else kwargs["hidden_states"]
        cut = tuple(self._cut(name, value) for name, value in zip(names, args, strict=True))
        kwargs = {name: self._cut(name, value) for name, value in kwargs.items()}
        if self.mask is not None and len(args) < 2 and "attention_mask" not in kwargs:
            kwargs["attention_mask"] = self._cut("attention_mask", None)
        return cut, kwargs

    def _cut(self, name: str, value: Any) -> Any:
        assert self.full is not None
        if name == "attention_mask" and self.mask is not None:
            length = self.columns.shape[1]
            mask = self.mask.to(self.full.dtype).clamp(min=torch.finfo(self.full.dtype).min).expand(-1, -1, length, -1)
            if value is None:
                return mask
            if isinstance(value, Tensor) and value.ndim == 4 and value.is_floating_point():
                return cut_mask(value, self.columns, self.columns) + mask
            raise UnsupportedInputError(
                "Images keep different numbers of patches (or weigh them), which the mask of this encoder's attention"
                " cannot say; load the model with attn_implementation='sdpa' or 'eager'."
            )
        if isinstance(value, tuple):
            return tuple(self._cut(name, item) for item in value)
        if not isinstance(value, Tensor):
            return value
        length = self.prefix + self.patches
        if value.ndim == 4 and value.shape[-1] == length:
            return cut_mask(value, self.columns, self.columns)
        if name.startswith("cu_"):
            return self._bounds(value)
        if not self.packed:
            return gather(value, self.columns) if name == "hidden_states" else value
        axis = next((axis for axis in range(value.ndim) if value.shape[axis] == length), None)
        return value if axis is None else value.index_select(axis, self.columns[0].to(value.device))

    def _bounds(self, bounds: Tensor) -> Tensor:
        """Where images (or windows) begin among the columns that are left; empty ones are gone."""
        if id(bounds) not in self.bounds:
            stays = torch.zeros(self.patches + 1, dtype=torch.long, device=bounds.device)
            before = stays.scatter(0, self.columns[0].to(bounds.device) + 1, 1).cumsum(0)
            shorter = before[bounds.long()].unique_consecutive().to(bounds.dtype)
            self.bounds[id(bounds)] = shorter, bounds  # kept alive, so that its id stays its own
        return self.bounds[id(bounds)][0]

    def restore(self, hidden: Tensor) -> Tensor:
        """A layer's output written over its full-length input."""
        if self.full is None:
            return hidden
        full, self.full = self.full.to(hidden.dtype), None
        shape = full.shape
        rows = 1 if self.packed else shape[0]
        return scatter(
            hidden.reshape(rows, -1, shape[-1]),
            self.columns,
            self.prefix + self.patches,
            full.view(rows, -1, shape[-1]),
        ).view(shape)
