"""Checks of what a policy returns. Shapes are checked at once; values without waiting for a GPU."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from prunekit.errors import PolicyError, PrunekitError, ScoresError
from prunekit.keep import Keep
from prunekit.plan import Stage
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["Checks", "check_selection"]


class Checks:
    """Conditions on tensors: raised at once on the CPU, and at the next call or the session's end on other devices."""

    def __init__(self) -> None:
        self.open: list[tuple[Tensor, Callable[[], PrunekitError]]] = []

    def require(self, broken: Tensor, error: Callable[[], PrunekitError]) -> None:
        """Raise `error()` if the scalar tensor `broken` is True. Not checked while tracing or on the meta device."""
        if broken.device.type == "meta" or torch._C._get_tracing_state() is not None:
            return
        self.open.append((broken, error))
        if broken.device.type == "cpu":
            self.settle()

    def settle(self) -> None:
        """Raise the first open error."""
        pending, self.open = self.open, []
        for broken, error in pending:
            if bool(broken):
                raise error()


def check_selection(stage: Stage, tokens: VisualTokens, selection: Selection, checks: Checks) -> tuple[int, ...]:
    """Check a selection against the tokens it was made from; returns the tokens kept by each row.

    Raises:
        PolicyError: wrong type, shape, range or order, or another number than the budget asks for.
        ScoresError: scores are not finite, or equal for all tokens of a row that has to drop some.
    """
    who = f"{type(stage.policy).__name__} at {stage.site!r}"
    batch, visual = tokens.valid.shape
    if not isinstance(selection, Selection):
        raise PolicyError(f"{who}: select must return a Selection, it returned {type(selection).__name__}.")
    kept = selection.kept
    if not isinstance(kept, Tensor) or kept.dtype not in (torch.int64, torch.int32):
        given = kept.dtype if isinstance(kept, Tensor) else type(kept).__name__
        raise PolicyError(f"{who}: Selection.kept must be a tensor of integers, it is {given}.")
    if kept.ndim != 2 or kept.shape[0] != batch or not kept.shape[1] <= visual:
        raise PolicyError(
            f"{who}: Selection.kept must be [batch, kept] with batch {batch} and at most {visual} kept; it is"
            f" {list(kept.shape)}."
        )
    slots = kept.shape[1]
    more = 0 if selection.extra is None else selection.extra.shape[1]
    shapes = {
        "scores": ("[batch, visual]", (batch, visual)),
        "owner": ("[batch, visual]", (batch, visual)),
        "weight": ("[batch, visual]", (batch, visual)),
        "mix": ("[batch, kept, visual + extra]", (batch, slots, visual + more)),
        "bias": ("[batch, kept]", (batch, slots)),
    }
    for name, (axes, shape) in shapes.items():
        value = getattr(selection, name)
        if value is not None and value.shape != shape:
            raise PolicyError(f"{who}: Selection.{name} must be {axes} = {list(shape)}; it is {list(value.shape)}.")
    if selection.mix is not None and selection.owner is not None:
        raise PolicyError(f"{who}: Selection takes either owner (averages) or mix (any weighted sums), not both.")
    if selection.bias is not None and stage.where.kind != "vision":
        raise PolicyError(f"{who}: Selection.bias weighs attention inside the vision encoder only.")
    counts = selection.counts
    if counts is None:
        counts = tuple((kept >= 0).sum(1).tolist())
    if stage.keep is not None:
        asked = tokens.budget(stage.keep)
        if counts != asked:
            raise PolicyError(
                f"{who} kept {list(counts)} visual tokens of the rows, but {stage.keep} asks for {list(asked)}."
            )
    _check_values(who, tokens, kept, counts, checks)
    if stage.keep is not None and stage.keep.per == "image":
        _check_images(who, stage.keep, tokens, kept, checks)
    if selection.scores is not None:
        _check_scores(who, tokens, selection.scores, counts, checks)
    return counts


def _check_values(who: str, tokens: VisualTokens, kept: Tensor, counts: tuple[int, ...], checks: Checks) -> None:
    visual, slots = tokens.valid.shape[1], kept.shape[1]
    if min(counts, default=0) == slots and min(tokens.counts, default=0) == visual:  # no padding: all in one go
        steps = kept.diff(prepend=kept.new_full((len(kept), 1), -1), append=kept.new_full((len(kept), 1), visual))
        checks.require((steps < 1).any(), lambda: _wrong_values(who, kept, visual))
        return
    wanted = torch.arange(slots, device=kept.device) < torch.tensor(counts, device=kept.device)[:, None]
    real = (kept >= 0) & (kept < visual) & tokens.valid.gather(1, kept.clamp(0, visual - 1))
    ordered = (kept[:, 1:] > kept[:, :-1]) | ~wanted[:, 1:]
    broken = (real != wanted).any() | ((kept != -1) & ~wanted).any() | ~ordered.all()
    checks.require(broken, lambda: _wrong_values(who, kept, visual))


def _wrong_values(who: str, kept: Tensor, visual: int) -> PolicyError:
    return PolicyError(
        f"{who}: kept positions must be those of tokens, 0 to {visual - 1}, ascending without duplicates (-1 only at"
        f" the right of rows that keep fewer); got {kept.tolist()}."
    )


def _check_images(who: str, keep: Keep, tokens: VisualTokens, kept: Tensor, checks: Checks) -> None:
    budget = tokens.budget_per_image(keep)
    widest = max(map(len, budget))
    asked = torch.tensor([[*row, *[0] * (widest - len(row))] for row in budget], device=kept.device)
    image = tokens.image_number().clamp(max=widest - 1).gather(1, kept.clamp(min=0))
    there = torch.zeros_like(asked).scatter_add(1, image, (kept >= 0).long())
    checks.require(
        (there != asked).any(),
        lambda: PolicyError(
            f"{who} kept {there.tolist()} visual tokens of the images of each row, but {keep} asks for"
            f" {[list(row) for row in budget]}; the policy knows budgets per sample only."
        ),
    )


def _check_scores(who: str, tokens: VisualTokens, scores: Tensor, counts: tuple[int, ...], checks: Checks) -> None:
    scores, visual = scores.detach().float(), scores.shape[1]
    if not visual:
        return
    if min(tokens.counts, default=0) < visual:  # padding gets the score of its row's first token
        scores = scores.where(tokens.valid, scores[:, :1].masked_fill(~tokens.valid[:, :1], 0))
    low, high = torch.aminmax(scores, dim=1)
    noise = 8 * torch.finfo(torch.float32).eps  # of a mean over hundreds of float32 terms
    broken = ~(high - low > noise * torch.maximum(low.abs(), high.abs()))  # NaN and infinity are above nothing
    choosing = [0 < count < there for count, there in zip(counts, tokens.counts, strict=True)]
    if not all(choosing):  # rows that keep all or nothing may have equal scores
        broken = torch.where(torch.tensor(choosing, device=scores.device), broken, ~(low.isfinite() & high.isfinite()))
    checks.require(broken.any(), lambda: _useless_scores(who, bool((low.isfinite() & high.isfinite()).all())))


def _useless_scores(who: str, finite: bool) -> ScoresError:
    if not finite:
        return ScoresError(f"{who}: scores hold NaN or infinite values; they rank nothing.")
    return ScoresError(
        f"{who}: the scores of a row are the same for all its visual tokens, so that their ranking is rounding"
        " noise. A softmax averaged over the axis it sums to one over is always constant; average over the queries"
        " instead. Attention in a layer whose window does not reach the image is 0 everywhere; read another layer."
    )
