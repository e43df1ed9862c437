"""Random visual tokens for tests of single policies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from prunekit import Needs, Rows, Selection, States, VisualTokens
from prunekit.patches import Image

__all__ = ["best", "left", "meta", "positions", "random_tokens", "row"]

TILE = 5  # patches of a tile
_SIDES = {
    "image_embeds": lambda batch, visual, dim, text: (batch, visual, dim),
    "text_embeds": lambda batch, visual, dim, text: (batch, text, dim),
}


def random_tokens(
    counts: tuple[int, ...] = (16, 16),
    dim: int = 8,
    needs: Needs | None = None,
    *,
    text: int | tuple[int, ...] = 5,
    heads: int = 2,
    seed: int = 0,
    square: bool = False,
    grid: tuple[int, int] | None = None,
) -> VisualTokens:
    """Tokens of rows with these counts, with everything that `needs` asks for; `square` images have a grid.

    With `grid`, rows hold as many images of this size as fit their counts. What lies behind a row's tokens is noise.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    needs = needs or Needs()
    batch, most = len(counts), max(counts)
    texts = torch.tensor((text,) * batch if isinstance(text, int) else text)[:, None]
    text = int(texts.max())
    source = torch.arange(most).expand(batch, -1)
    valid = source < torch.tensor(counts)[:, None]
    attention: dict[Rows | str, Tensor] = {}
    for rows in needs.attention:
        many = {"cls": 1, "last": 1, "visual": most, "image": most}.get(rows.queries, text)
        values = normal(batch, heads, many, most).masked_fill(~valid[:, None, None], -1e4).softmax(-1)
        if rows.queries in ("text", "instruction"):  # the last rows are those of the text that there is
            values = values * (torch.arange(text) >= text - texts)[:, None, :, None]
        values = (
            values if rows.reduce is None else values.mean(2).amax(1) if rows.reduce == "max" else values.mean((1, 2))
        )
        attention[rows] = attention[rows.queries] = values.masked_fill(
            ~valid.view(batch, *[1] * (values.ndim - 2), most), 9
        )
    states: dict[States, Tensor] = {}
    for wanted in needs.states:
        many = {"visual": most, "text": text, "cls": 1}[wanted.of]
        states[wanted] = (
            normal(batch, heads, many, dim) if wanted.kind in ("key", "value") else normal(batch, many, dim)
        )
    sides = {round(count**0.5) for count in counts}
    if square and len(sides) == 1:
        grid = (side := next(iter(sides)), side)
    size = grid[0] * grid[1] if grid else 0
    images = tuple(
        (Image(size, grid),) * (count // size) if size else (Image(count),) * (count > 0) for count in counts
    )
    fields: dict[str, Any] = {
        "attention": attention,
        "states": states,
        "keys": normal(batch, heads, most, dim) if needs.keys is not None else None,
        "text": normal(batch, text, dim),
        "text_valid": torch.arange(text) < texts,
        "question": (torch.arange(text) >= 2) & (torch.arange(text) < texts),
        "positions": torch.where(valid, source + 2, -1),
        "text_positions": torch.cat([torch.arange(2), torch.arange(2 + most, most + text)]).where(
            torch.arange(text) < texts, -1
        ),
        "patches": torch.stack([source // TILE, source % TILE], -1).masked_fill(~valid[..., None], -1),
        "grid": grid,
        "per_image": size or (most if len(set(counts)) == 1 else None),
        "images": images,
        "alive": tuple(tuple(image.tokens for image in row) for row in images),
        "side": {name: normal(*_SIDES.get(name, lambda *n: n[:2])(batch, most, dim, text)) for name in needs.side},
    }
    hidden = normal(batch, most, dim)
    return VisualTokens(hidden, source.masked_fill(~valid, -1), valid, counts, counts, **fields)


def row(tokens: VisualTokens, number: int) -> VisualTokens:
    """One row as it would be alone, without padding."""
    assert tokens.text_valid is not None
    count, words = tokens.counts[number], int(tokens.text_valid[number].sum())

    def cut(value: Any, axis: int | None, size: int = count) -> Any:
        if value is None:
            return None
        value = value[number : number + 1]
        return value if axis is None else value.narrow(axis, 0, size)

    def rows_of(rows: Rows | str, value: Tensor) -> Tensor:
        value = cut(value, value.ndim - 1)
        if value.ndim < 4:
            return value
        many = {"cls": 1, "last": 1, "visual": count, "image": count}.get(getattr(rows, "queries", str(rows)), words)
        return value[:, :, :many] if many == count else value[:, :, value.shape[2] - many :]

    states = {
        wanted: cut(value, value.ndim - 2, {"visual": count, "text": words, "cls": 1}[wanted.of])
        for wanted, value in tokens.states.items()
    }
    return replace(
        tokens,
        hidden=cut(tokens.hidden, 1),
        source=cut(tokens.source, 1),
        valid=cut(tokens.valid, 1),
        total=tokens.total[number : number + 1],
        counts=tokens.counts[number : number + 1],
        attention={rows: rows_of(rows, value) for rows, value in tokens.attention.items()},
        states=states,
        keys=cut(tokens.keys, 2),
        text=cut(tokens.text, 1, words),
        text_valid=cut(tokens.text_valid, 1, words),
        question=cut(tokens.question, 1, words),
        positions=cut(tokens.positions, 1),
        text_positions=cut(tokens.text_positions, 1, words),
        patches=cut(tokens.patches, 1),
        images=tokens.images and tokens.images[number : number + 1],
        alive=tokens.alive and tokens.alive[number : number + 1],
        side={name: cut(value, None if name == "text_embeds" else 1) for name, value in tokens.side.items()},
        memory={},
    )


def left(tokens: VisualTokens, numbers: Tensor, counts: tuple[int, ...]) -> VisualTokens:
    """Tokens of which those with these original numbers are left, [batch, kept]; -1 at the right."""
    index = numbers.clamp(min=0)
    valid = numbers >= 0

    def take(value: Any, axis: int) -> Any:
        if value is None:
            return None
        shape = [1] * value.ndim
        shape[0], shape[axis] = index.shape
        return value.gather(axis, index.view(shape).expand([*value.shape[:axis], -1, *value.shape[axis + 1 :]]))

    return replace(
        tokens,
        hidden=take(tokens.hidden, 1),
        source=numbers,
        valid=valid,
        counts=counts,
        attention={rows: take(value, value.ndim - 1) for rows, value in tokens.attention.items()},
        keys=take(tokens.keys, 2),
        states={s: take(value, value.ndim - 2) if s.of == "visual" else value for s, value in tokens.states.items()},
        positions=torch.where(valid, take(tokens.positions, 1), -1),
        patches=None if tokens.patches is None else take(tokens.patches, 1).masked_fill(~valid[..., None], -1),
        alive=None,
    )


def positions(selection: Selection, row: int = 0) -> list[int]:
    """What a row keeps."""
    return [position for position in selection.kept[row].tolist() if position >= 0]


def best(scores: list[float], count: int, among: Iterable[int] | None = None) -> list[int]:
    """Positions of the `count` highest scores, ascending; ties go to the first."""
    places = range(len(scores)) if among is None else among
    return sorted(sorted(places, key=lambda i: (-scores[i], i))[:count])


def meta(tokens: VisualTokens) -> VisualTokens:
    """The same tokens without values, on the meta device."""

    def move(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to("meta")
        return {key: move(item) for key, item in value.items()} if isinstance(value, dict) else value

    names = ("hidden", "source", "valid", "attention", "keys", "text", "text_valid", "question", "states")
    names += ("positions", "text_positions", "patches", "side")
    return replace(tokens, memory={}, **{name: move(getattr(tokens, name)) for name in names})
