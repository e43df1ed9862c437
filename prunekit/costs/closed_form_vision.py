"""Multiply-adds of vision encoders and projectors: one description for all encoders, and a table of what differs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from prunekit.costs.products import attention, attention_rows, chain, linear
from prunekit.errors import UnsupportedModelError, nearest

__all__ = ["Encoder", "Grid"]

Grid = Sequence[int]
"""Rows and columns of patches of an image; or frames, rows and columns."""


@dataclass(frozen=True)
class Tower:
    """How a kind of encoder reads its config.

    Attributes:
        special: tokens before the patches ([CLS]).
        width: field with the width of its layers.
        gated: whether its MLP has three matrices instead of two.
        inner: width I of that MLP.
        apart: what attends to itself alone: `image`; `frame`, in one sequence; `window`, in one sequence, in all layers
            but `fullatt_block_indexes`; `nothing`, where all images of a batch are one sequence under a mask.
        merge: patches along the edge of the square that becomes one visual token inside the encoder.
        behind: one visual token in what follows the layers inside the encoder.
    """

    special: int = 0
    width: str = "hidden_size"
    gated: bool = False
    inner: Callable[[Any], int] = lambda c: int(c.intermediate_size)
    apart: str = "image"
    merge: Callable[[Any], int] = lambda c: 1
    behind: Callable[[Any], int] = lambda c: 0


def _qwen(width: str, out: str, mergers: Callable[[Any], int] = lambda c: 1, **others: Any) -> Tower:
    """Patches are merged by two linear layers, m^2 D to m^2 D to `out`; a merger for each level of DeepStack."""

    def behind(c: Any) -> int:
        square = getattr(c, width) * c.spatial_merge_size**2
        return mergers(c) * chain(square, square, getattr(c, out))

    return Tower(width=width, merge=lambda c: int(c.spatial_merge_size), behind=behind, **{"apart": "frame"} | others)


_GLM = Tower(
    gated=True,
    inner=lambda c: int(c.out_hidden_size),
    apart="frame",
    merge=lambda c: int(c.spatial_merge_size),
    behind=lambda c: (
        chain(c.hidden_size * c.spatial_merge_size**2, c.out_hidden_size, c.out_hidden_size)  # a convolution, a layer
        + 3 * chain(c.out_hidden_size, c.intermediate_size)
    ),
)
_QWEN3 = _qwen("hidden_size", "out_hidden_size", lambda c: 1 + len(c.deepstack_visual_indexes))
TOWERS = {
    "clip_vision_model": Tower(special=1),
    "siglip_vision_model": Tower(),
    "internvl_vision": Tower(special=1),
    "idefics3_vision": Tower(),
    "smolvlm_vision": Tower(),
    "molmo2_vision": Tower(),
    "ovis2_vision": Tower(
        gated=True,
        merge=lambda c: int(c.hidden_stride),
        behind=lambda c: chain(c.hidden_size * c.hidden_stride**2, c.vocab_size - c.num_visual_indicator_tokens),
    ),
    "pixtral": Tower(gated=True, apart="nothing"),
    "qwen2_vl_vision": _qwen("embed_dim", "hidden_size", inner=lambda c: int(c.embed_dim * c.mlp_ratio)),
    "qwen2_5_vl_vision": _qwen("hidden_size", "out_hidden_size", gated=True, apart="window"),
    "qwen3_vl_vision": _QWEN3,
    "qwen3_vl_moe_vision": _QWEN3,
    "glm4v_vision": _GLM,
    "glm4v_moe_vision": _GLM,
}
"""By `model_type` of the vision config."""


@dataclass(frozen=True)
class Encoder:
    """Shapes of a vision encoder.

    Attributes:
        hidden: width D.
        heads: query heads.
        key_heads: key and value heads.
        head_dim: width of a head.
        mlp: multiply-adds of one token in the MLP.
        depth: layers that run. The last ones run even where the features are those of an earlier layer.
        patches: patches of an image, 0 where images have any size.
        pixels: values of a patch: `channels * frames * side^2`.
        special: tokens before the patches ([CLS]).
        pooled: width of the MLP of a pooling head, which runs in vain; 0: none.
        apart, merge, behind: see `Tower`.
        window: edge of a window, in squares of `merge` by `merge` patches.
        whole: layers that look beyond windows.
    """

    hidden: int
    heads: int
    key_heads: int
    head_dim: int
    mlp: int
    depth: int
    patches: int
    pixels: int
    special: int = 0
    pooled: int = 0
    apart: str = "image"
    merge: int = 1
    behind: int = 0
    window: int = 0
    whole: frozenset[int] = field(default_factory=frozenset)

    @classmethod
    def of(cls, config: Any) -> Encoder:
        """Read the shapes from a vision config.

        Raises:
            UnsupportedModelError: nobody has compared this encoder with the formulas.
        """
        kind = str(config.model_type)
        if kind not in TOWERS:
            raise UnsupportedModelError(
                f"The closed form does not know the vision encoder {kind!r}; it knows {', '.join(TOWERS)}."
                f"{nearest(kind, TOWERS)} With images=0 it gives the language model alone; prunekit.flops.count counts"
                " the real forward pass."
            )
        tower = TOWERS[kind]
        width, heads = getattr(config, tower.width), _first(config, "num_attention_heads", "num_heads")
        rows, columns = _pair(config.patch_size)
        sides = _pair(config.image_size) if tower.apart == "image" else (0, 0)
        merge = tower.merge(config)
        frames, channels = getattr(config, "temporal_patch_size", 1), _first(config, "num_channels", "in_channels")
        return cls(
            hidden=width,
            heads=heads,
            key_heads=getattr(config, "num_key_value_heads", heads),
            head_dim=getattr(config, "head_dim", None) or width // heads,
            mlp=(3 if tower.gated else 2) * linear(1, width, tower.inner(config)),
            depth=_first(config, "num_hidden_layers", "depth"),
            patches=(sides[0] // rows) * (sides[1] // columns),
            pixels=channels * frames * rows * columns,
            special=tower.special,
            pooled=config.intermediate_size if kind.startswith("siglip") and _has_head(config) else 0,
            apart=tower.apart,
            merge=merge,
            behind=tower.behind(config),
            window=config.window_size // (rows * merge) if tower.apart == "window" else 0,
            whole=frozenset(getattr(config, "fullatt_block_indexes", ())),
        )

    @property
    def tokens(self) -> int:
        """Patches of an image and [CLS]."""
        return self.patches + self.special

    def embedding(self, grids: Sequence[Grid] | None = None) -> int:
        """The convolution that cuts into patches, `P pixels D`: of one image, or of images of these grids.

        Where nothing is apart, images are filled up to the height and the width of the largest.
        """
        if grids is None:
            return linear(self.patches, self.pixels, self.hidden)
        patches = sum(prod(grid) for grid in grids)
        if self.apart == "nothing" and grids:
            patches = len(grids) * max(grid[-2] for grid in grids) * max(grid[-1] for grid in grids)
        return linear(patches, self.pixels, self.hidden)

    def layer(self, *tokens: int) -> int:
        """One layer, on parts of these lengths that attend to themselves: `n (2 D Dq + 2 D Dkv) + 2 n^2 Dq + n MLP`."""
        total, queries, keys = sum(tokens), self.heads * self.head_dim, self.key_heads * self.head_dim
        projections = 2 * linear(total, self.hidden, queries) + 2 * linear(total, self.hidden, keys)
        attended = sum(attention(part, part, self.heads, self.head_dim) for part in tokens)
        return projections + attended + total * self.mlp

    def rows(self, rows: int, keys: int) -> int:
        """Reading `rows` rows of a layer's attention, over `keys` keys."""
        return attention_rows(rows, keys, self.heads, self.head_dim)

    def parts(self, layer: int, grids: Sequence[Grid]) -> list[int]:
        """Lengths of what attends to itself in a layer, for images or videos of these grids of patches."""
        shapes = [tuple(grid) if len(grid) == 3 else (1, *grid) for grid in grids]
        if self.apart == "nothing":
            return [sum(prod(shape) for shape in shapes)]
        if self.apart == "frame" or layer in self.whole:
            return [rows * columns for frames, rows, columns in shapes for _ in range(frames)]
        edge = self.window * self.merge
        return [
            min(edge, rows - top) * min(edge, columns - left)
            for frames, rows, columns in shapes
            for _ in range(frames)
            for top in range(0, rows, edge)
            for left in range(0, columns, edge)
        ]

    def tail(self, patches: int, images: int) -> int:
        """What follows the layers inside the encoder: mergers, or a pooling head with one query an image."""
        pool = 0
        if self.pooled:
            tokens, width = patches // images if images else 0, self.hidden
            pool = 2 * linear(tokens + 1, width, width) + attention(1, tokens, 1, width) + 2 * width * self.pooled
        return patches // self.merge**2 * self.behind + images * pool


def _first(config: Any, *names: str) -> int:
    """The first of these fields that the config has."""
    return next(int(getattr(config, name)) for name in names if getattr(config, name, None) is not None)


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _has_head(config: Any) -> bool:
    return bool(getattr(config, "vision_use_head", True))
