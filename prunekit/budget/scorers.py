"""What policies cost by themselves, from what they declare: attention rows that they read, and their own products."""

from __future__ import annotations

from collections.abc import Sequence

from prunekit.costs.closed_form_text import Decoder, Encoder
from prunekit.costs.products import linear
from prunekit.errors import BudgetError
from prunekit.needs import Rows
from prunekit.plan import Shape, Stage
from prunekit.policy import Products

__all__ = ["UnknownCostError", "scorers"]


class UnknownCostError(BudgetError):
    """No closed form is known for what a policy reads or computes on this model."""


def scorers(
    stages: Sequence[Stage],
    shape: Shape,
    decoder: Decoder,
    encoder: Encoder | None,
    levels: Sequence[int],
    visual: int,
    text: int,
    behind: int | None = None,
    images: int = 1,
) -> dict[str, int]:
    """Multiply-adds of the policies on one sample, by the layer that is read or the site.

    A stage in the encoder whose number of tokens depends on the data is counted as if it left all.

    Args:
        stages: of the plan, in order.
        shape: of the model.
        decoder: its language model.
        encoder: its vision encoder; None where that is not known.
        levels: visual tokens that enter each decoder layer.
        visual: visual tokens of a sample.
        text: other tokens of a sample.
        behind: those of them that come after the image; by default all.
        images: that the visual tokens are made of.

    Raises:
        UnknownCostError: a policy reads an encoder whose cost is not known.
    """
    found: dict[str, int] = {}
    read: set[tuple[str, Rows]] = set()
    alive = _encoder_tokens(stages, shape, encoder, visual)
    words = text if behind is None else behind
    now = visual
    for stage in stages:
        for rows in stage.policy.needs.attention:
            layer = _layer(rows, stage, shape)
            name = f"{'vision' if rows.of_vision else 'decoder'}.{layer}"
            if (name, rows) in read:
                continue
            read.add((name, rows))
            if rows.of_vision:
                cost = images * _of_encoder(rows, layer, encoder, alive, stage)
            else:
                cost = _of_decoder(rows, layer, decoder, levels, text, words)
            found[name] = found.get(name, 0) + cost
        count = stage.count(visual)
        kept = now if count is None else count
        times = images if stage.where.part == 0 else 1  # the encoder sees images one by one
        own = times * _products(stage, now // times, kept // times, text, decoder, encoder)
        found[stage.site] = found.get(stage.site, 0) + own
        now = kept
    return found


def _products(stage: Stage, now: int, kept: int, text: int, decoder: Decoder, encoder: Encoder | None) -> int:
    """The policy's own work, as it declares it."""
    inside, policy = stage.where.part == 0, stage.policy
    if encoder is not None:
        here = encoder if inside else decoder
        return policy.products(Products(now, kept, here.hidden, here.head_dim, text, encoder.hidden))
    none, some = (
        policy.products(
            Products(now, kept, *((size, size) if inside else (decoder.hidden, decoder.head_dim)), text, size)
        )
        for size in (0, 1)
    )
    if none != some:
        raise _unknown(stage, "works on states of")
    return some


def _layer(rows: Rows, stage: Stage, shape: Shape) -> int:
    """The layer that a stage reads."""
    if rows.layer is not None:
        return rows.layer % (shape.encoder if rows.of_vision else shape.depth)
    if rows.of_vision:
        return stage.where.index if stage.where.kind == "vision" else shape.features
    return stage.where.index if rows.ahead else stage.where.index - 1


def _encoder_tokens(stages: Sequence[Stage], shape: Shape, encoder: Encoder | None, visual: int) -> list[int]:
    """Patches of an image that are in each encoder layer."""
    patches = 0 if encoder is None else encoder.patches
    alive = [patches] * shape.encoder
    for stage in stages:
        count = stage.count(visual)
        if stage.where.kind == "vision" and count is not None:
            first = stage.where.index + 1
            alive[first:] = [patches * count // visual] * (shape.encoder - first)
    return alive


def _of_encoder(rows: Rows, layer: int, encoder: Encoder | None, alive: Sequence[int], stage: Stage) -> int:
    if encoder is None:
        raise _unknown(stage, "reads attention of")
    queries = 1 if rows.queries == "cls" else alive[layer]
    return encoder.rows(queries, alive[layer] + encoder.special)


def _of_decoder(rows: Rows, layer: int, decoder: Decoder, levels: Sequence[int], text: int, words: int) -> int:
    # a look ahead is at what the layer before was given
    seen = levels[layer - 1] if rows.ahead else levels[layer]
    queries = {"last": 1, "image": seen, "text": words, "instruction": max(0, words - rows.cue)}[rows.queries]
    cost = decoder.rows(queries, seen + text)
    if rows.ahead:  # the layer's queries, keys and values once more
        wide, narrow = decoder.heads * decoder.head_dim, decoder.key_heads * decoder.head_dim
        cost += linear(seen + text, decoder.hidden, wide + 2 * narrow)
    return cost


def _unknown(stage: Stage, what: str) -> UnknownCostError:
    return UnknownCostError(
        f"Stage({stage.site!r}): {type(stage.policy).__name__} {what} the vision encoder, whose cost is not known in"
        " closed form on this model; give the budget in tokens, average or kv."
    )
