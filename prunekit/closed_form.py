"""What a prefill costs, from the shapes of a model alone: no weights, no run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

from prunekit.costs.closed_form_projector import Projector
from prunekit.costs.closed_form_text import Decoder
from prunekit.costs.closed_form_vision import Encoder, Grid
from prunekit.costs.parts import Cost
from prunekit.errors import UnsupportedInputError

__all__ = ["Decoder", "Encoder", "closed_form"]


def closed_form(
    model_or_config: Any,
    visual: Sequence[int],
    text: int,
    *,
    images: int | Sequence[Grid] = 1,
    batch: int = 1,
    encoder: Sequence[int | Sequence[int]] | None = None,
    scorers: Mapping[str, int] | None = None,
    logits_to_keep: int = 1,
    projected: int | None = None,
    video: bool = False,
) -> Cost:
    """The same cost as `count`, from shapes alone; needs no weights and no run.

    Args:
        model_or_config: a config, or a model that has one.
        visual: visual tokens of a sample that enter each decoder layer, e.g. `prunekit.budget.tokens_per_layer(...)`.
        text: all other tokens of a sample.
        images: images of a sample, each tile, crop and frame being one. For encoders that take images of any size
            (Qwen-VL, GLM-4V, Pixtral) the grid of patches of each, `(rows, columns)` or `(frames, rows, columns)`.
            0: the language model alone, of families whose encoder is not known, too.
        batch: samples, all of them alike.
        encoder: tokens in each layer of the encoder, [CLS] included, of one image; where it runs on all images in one
            sequence, lengths of the parts that attend to themselves, of one sample. By default nothing is pruned there.
        scorers: multiply-adds of the policies, by scope.
        logits_to_keep: positions that go through the output head.
        projected: tokens of a sample that the projector makes, where that does not follow from `images`: of Molmo 2,
            whose crops share tokens. What stages drop before the projector still goes through it.
        video: whether `images` are frames of videos, which some families pool otherwise.

    Raises:
        UnsupportedModelError: the language model, encoder or projector is one that nobody has compared.
        UnsupportedInputError: `images` or `projected` do not say what this encoder is given.
    """
    config = getattr(model_or_config, "config", model_or_config)
    language = Decoder.of(config.get_text_config(decoder=True))
    vision = projector = 0
    if images:
        vision, projector = _images(config, images, batch, encoder, projected, video)
    per_layer = tuple(batch * macs for macs in language.layers([tokens + text for tokens in visual]))
    macs = {
        "vision": vision,
        "projector": projector,
        "scorer": sum((scorers or {}).values()),
        "prefill": sum(per_layer),
        "lm_head": batch * language.head(logits_to_keep),
    }
    return Cost(macs, per_layer, dict(scorers or {}), tuple(batch * tokens for tokens in visual))


def _images(
    config: Any,
    images: int | Sequence[Grid],
    batch: int,
    lengths: Sequence[int | Sequence[int]] | None,
    projected: int | None,
    video: bool,
) -> tuple[int, int]:
    """The vision encoder and the projector."""
    projector = Projector.of(config, video)
    eyes = Encoder.of(config.vision_config)
    if isinstance(images, int) != (eyes.apart == "image"):
        wanted = "their number" if eyes.apart == "image" else "the grid of patches of each, e.g. [(16, 24)]"
        raise UnsupportedInputError(
            f"images={images!r}: of the encoder {config.vision_config.model_type!r} give {wanted}."
        )
    grids = [] if isinstance(images, int) else [grid for _ in range(batch) for grid in images]
    number = batch * images if isinstance(images, int) else len(grids)
    if projected is None and not projector.counted:
        raise UnsupportedInputError(
            f"projected is missing: how many tokens {config.model_type!r} makes of its crops does not follow from their"
            " number; give the visual tokens of a sample."
        )
    through = projector.tokens(eyes, number, grids) if projected is None else batch * projected
    patches = number * eyes.patches if isinstance(images, int) else sum(prod(grid) for grid in grids)
    layers = sum(_layer(eyes, index, number, batch, grids, lengths) for index in range(eyes.depth))
    embedding = number * eyes.embedding() if isinstance(images, int) else eyes.embedding(grids)
    return embedding + layers + eyes.tail(patches, number), through * projector.macs


def _layer(
    eyes: Encoder,
    index: int,
    images: int,
    batch: int,
    grids: Sequence[Grid],
    lengths: Sequence[int | Sequence[int]] | None,
) -> int:
    """A layer of the encoder on all images of the batch."""
    if lengths is None:
        return images * eyes.layer(eyes.tokens) if eyes.apart == "image" else eyes.layer(*eyes.parts(index, grids))
    given = lengths[index]
    if isinstance(given, int):
        return images * eyes.layer(given)
    return eyes.layer(*(sum(given) * batch,)) if eyes.apart == "nothing" else batch * eyes.layer(*given)
