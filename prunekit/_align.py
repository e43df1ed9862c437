"""Values by visual token: from the order of the encoder to that of the samples, and from there to a policy."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate

import torch
from torch import Tensor

from prunekit._call import Sent
from prunekit.errors import NeedsError
from prunekit.needs import Rows, States
from prunekit.patches import Encoded
from prunekit.plan import Stage

__all__ = ["Layers", "align", "images_of", "pick", "pick_states", "side_inputs", "spread", "take"]

Layers = dict[tuple[str, Rows | States], int]
"""Which layer each row set, and the keys, of each stage (by site) are read from."""


def repeats_of(sent: Sent, encoded: dict[str, Encoded]) -> int:
    """How many rows stand for one sample: `generate` repeats samples (beams) after the encoder ran.

    Raises:
        NeedsError: the numbers of features and visual tokens do not fit together.
    """
    features = sum(each.total for each in encoded.values())
    repeats, rest = divmod(sum(sent.counts), features) if features else (0, 0)
    if rest or not repeats or len(sent.counts) % repeats:
        raise NeedsError(
            f"The vision encoder made {features} visual tokens, which does not fit the {sum(sent.counts)} of this call;"
            " run the encoder and the language model in one session, on the same images."
        )
    return repeats


def align(values: Tensor, sent: Sent, encoded: dict[str, Encoded], fill: float = 0.0) -> Tensor:
    """Turn values of the encoder's tokens [tokens, ...] into values per sample [batch, ..., visual].

    The tokens of all images come first, then those of all videos, each in the order of the samples.
    """
    repeats = repeats_of(sent, encoded)
    device = values.device
    images = tuple(all_ - moving for all_, moving in zip(sent.counts, sent.videos, strict=True))
    first = torch.tensor([_starts(images, repeats, 0), _starts(sent.videos, repeats, sum(images) // repeats)])
    first = first.to(device)[..., None]  # [2, batch, 1]
    number = torch.arange(max(sent.counts), device=device)
    if sent.video is None:
        index = first[0] + number
    else:  # which of a row's visual tokens come from videos, in their order
        order = (~sent.visual).to(torch.uint8).argsort(dim=1, stable=True)[:, : max(sent.counts)]
        moving = sent.video.gather(1, order).to(device)
        index = torch.where(moving, first[1] + moving.long().cumsum(1) - 1, first[0] + (~moving).long().cumsum(1) - 1)
    valid = number < torch.tensor(sent.counts, device=device)[:, None]
    taken = values[index.clamp(0, values.shape[0] - 1)]  # [batch, visual, ...]
    return taken.masked_fill(~valid.view(*valid.shape, *[1] * (taken.ndim - 2)), fill).movedim(1, -1)


def _starts(counts: tuple[int, ...], repeats: int, position: int) -> list[int]:
    before = accumulate(counts[::repeats], initial=position)
    return [start for start, _ in zip(before, counts[::repeats], strict=False) for _ in range(repeats)]


def images_of(sent: Sent, encoded: dict[str, Encoded]) -> tuple[tuple[int, ...], ...] | None:
    """The numbers of each row's images, in order; None where they cannot be told apart on the host.

    Images are numbered through all rows, and videos after them.
    """
    if any(moving and moving != count for moving, count in zip(sent.videos, sent.counts, strict=True)):
        return None  # images and videos in one row: their order is known to the device only
    try:
        repeats = repeats_of(sent, encoded)
    except NeedsError:
        return None
    sizes = [tokens for kind in sorted(encoded) for tokens in encoded[kind].tokens or ()]
    first = {"image": 0, "video": len(encoded["image"].tokens or ()) if "image" in encoded and any(sent.videos) else 0}
    rows: list[tuple[int, ...]] = []
    for row, (count, moving) in enumerate(zip(sent.counts, sent.videos, strict=True)):
        if row % repeats:
            rows.append(rows[-1])
            continue
        kind = "video" if moving else "image"
        start, rest = first[kind], count
        while rest > 0 and first[kind] < len(sizes):
            rest -= sizes[first[kind]]
            first[kind] += 1
        if rest:
            return None
        rows.append(tuple(range(start, first[kind])))
    return tuple(rows)


def spread(values: Tensor, ordinals: Tensor, total: int, fill: float = 0.0) -> Tensor:
    """Put values of the tokens at hand [batch, ..., tokens] at their original numbers: [batch, ..., total]."""
    ordinals = ordinals.to(values.device)
    index = torch.where(ordinals >= 0, ordinals, total)  # padding goes to one column more, cut off again
    index = index.view(index.shape[0], *[1] * (values.ndim - 2), -1).expand(values.shape)
    return values.new_full((*values.shape[:-1], total + 1), fill).scatter(-1, index, values)[..., :total]


def take(full: Tensor, source: Tensor) -> Tensor:
    """The inverse of `spread`: values of the tokens at hand, [batch, ..., tokens], 0 where there is none."""
    full = full.to(source.device)  # layers may be spread over devices
    index = source.clamp(min=0).view(source.shape[0], *[1] * (full.ndim - 2), -1)
    values = full.gather(-1, index.expand(*full.shape[:-1], source.shape[-1]))
    return values * (source >= 0).view(index.shape)


def pick(
    stage: Stage, layers: Layers, found: dict[tuple[Rows | States, int], Tensor], view: Callable[[Tensor], Tensor]
) -> dict[Rows | str, Tensor]:
    """The attention that a stage's policy asked for, under its `Rows` and under the plain name of their queries."""
    result: dict[Rows | str, Tensor] = {}
    for rows in stage.needs.attention:
        result[rows] = result[rows.queries] = view(found[rows, layers[stage.site, rows]])
    return result


def pick_states(
    stage: Stage, layers: Layers, found: dict[tuple[Rows | States, int], Tensor], view: Callable[[Tensor], Tensor]
) -> dict[States, Tensor]:
    """The states of layers that a stage's policy asked for, [batch, ..., tokens, dim]; `view` cuts visual ones."""
    result: dict[States, Tensor] = {}
    for wanted in stage.needs.all_states:
        if wanted.of_layer:
            full = found[wanted.at(stage.where.part), layers[stage.site, wanted.at(stage.where.part)]]
            result[wanted] = (view(full) if wanted.of == "visual" else full).transpose(-1, -2)
    return result


def side_inputs(stage: Stage, side: dict[str, Tensor]) -> dict[str, Tensor]:
    """What the user handed to the session for this stage's policy.

    Raises:
        NeedsError: something is missing.
    """
    missing = [name for name in stage.needs.side if name not in side]
    if missing:
        raise NeedsError(
            f"{type(stage.policy).__name__} at {stage.site!r} reads {', '.join(map(repr, missing))}, which only you can"
            f" give: set session.side[{missing[0]!r}] = ... before the model runs."
        )
    return {name: side[name] for name in stage.needs.side}
