"""The two classes to subclass: `PruningPolicy` (any selection) and `ScoringPolicy` (a score per token)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from prunekit.errors import PolicyError
from prunekit.keep import Keep
from prunekit.needs import Needs
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.sequence import first_columns
from prunekit.tokens import VisualTokens

__all__ = ["Products", "PruningPolicy", "ScoringPolicy", "top_k"]


@dataclass(frozen=True)
class Products:
    """What the number of a policy's own operations depends on.

    Attributes:
        now: visual tokens of a sample at the site.
        kept: those that stay.
        width: of their states.
        head_dim: width of an attention head there.
        text: all other tokens of the sample.
        features: width of the vision encoder's states.
    """

    now: int
    kept: int
    width: int
    head_dim: int
    text: int
    features: int


class PruningPolicy(ABC):
    """Decides which visual tokens stay. Knows nothing of hooks, caches, layers or model families.

    Subclasses are frozen dataclasses: their fields are the method's parameters, in Python and in YAML alike.

    Attributes:
        needs: what the policy reads besides the hidden states; a class attribute, or a property where it depends on
            fields.
        needs_keep: False for a policy that decides the number of tokens by itself and may be staged without `Keep`.
        sites: the parts of a model where the policy has a meaning, of `vision`, `connector`, `input` and `decoder`.
        coupled: whether a row's result depends on the other rows of the batch, as in some released code. Never so
            unless asked for.
        waits: whether `select` reads values back to the host, as some that decide the number of tokens do: a GPU has to
            finish its work first, and without values (on the meta device) they cannot run.
        reference: where it was published; None for policies of one's own.

    States and attention are taken to be finite. Where they are NaN, or the same for all tokens, a policy that gives no
    scores still answers with a valid selection, the same one each time; only scores are refused (see `ScoringPolicy`).
    """

    needs: Needs = Needs()
    needs_keep: bool = True
    sites: tuple[str, ...] = ("vision", "connector", "input", "decoder")
    coupled: bool = False
    waits: bool = False
    reference = cast("Reference | None", None)  # without a type: jsonargparse would lose those of all fields

    def planned(self, total: int) -> int | None:
        """Tokens left of `total` original ones by a policy staged without `Keep`; None where the data decide."""
        return None

    def products(self, given: Products) -> int:
        """Multiply-adds of the policy's own matrix products on one sample, as `prunekit.flops.count` finds them.

        Budgets in FLOPs are charged for them. 0 unless a policy says otherwise; what it `needs` is charged apart.
        """
        return 0

    @abstractmethod
    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        """Select tokens.

        Args:
            tokens: the visual tokens at the site.
            keep: the stage's budget; `tokens.budget(keep)` is the number to keep of each row.

        Returns:
            The kept positions, ascending; see `Selection`.
        """


class ScoringPolicy(PruningPolicy):
    """A policy that ranks tokens by a score; the core keeps the highest.

    Ties go to the token that comes first; scores that are not finite, or equal for all tokens of a row,
    are refused with `ScoresError`, since their ranking would be rounding noise.
    """

    @abstractmethod
    def score(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        """Score every token; higher is kept."""

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        scores = self.score(tokens)
        if not isinstance(scores, Tensor) or scores.shape != tokens.valid.shape:
            given = f"a tensor {list(scores.shape)}" if isinstance(scores, Tensor) else f"{type(scores).__name__}"
            raise PolicyError(
                f"{type(self).__name__}.score must return one score per visual token, a tensor"
                f" {list(tokens.valid.shape)} [batch, visual]; it returned {given}."
            )
        if scores.is_complex():
            raise PolicyError(f"{type(self).__name__}.score must return real scores; it returned {scores.dtype}.")
        scores = scores if scores.is_floating_point() else scores.float()
        assert keep is not None  # Stage has checked it: needs_keep is True
        counts = tokens.budget(keep)
        kept = (
            top_k(scores, tokens, counts)
            if keep.per == "sample"
            else top_k_per_image(scores, tokens, tokens.budget_per_image(keep))
        )
        return Selection(kept, counts, scores)


def top_k_per_image(scores: Tensor, tokens: VisualTokens, budget: tuple[tuple[int, ...], ...]) -> Tensor:
    """Positions of the highest scores of each image of each row, ascending, -1 at the right: [batch, max(counts)].

    Args:
        budget: for each row, how many of each of its images.
    """
    widest = max(map(len, budget))
    table = torch.tensor([[*row, *[0] * (widest - len(row))] for row in budget], device=scores.device)
    image = tokens.image_number().clamp(max=widest - 1)
    ranked = scores.masked_fill(~tokens.valid, -torch.inf).argsort(dim=-1, descending=True, stable=True)
    order = ranked.gather(1, image.gather(1, ranked).argsort(dim=-1, stable=True))  # by image, best first
    number = image.gather(1, order)
    place = torch.arange(order.shape[1], device=order.device)
    start = torch.where(number[:, 1:] != number[:, :-1], place[1:], 0)
    start = torch.nn.functional.pad(start, (1, 0)).cummax(1).values  # where the token's image begins
    stays = (place - start < table.gather(1, number)) & tokens.valid.gather(1, order)
    flags = torch.zeros_like(tokens.valid).scatter(1, order, stays)
    index, real = first_columns(flags, max(map(sum, budget)))
    return index.masked_fill(~real, -1)


def top_k(scores: Tensor, tokens: VisualTokens, counts: tuple[int, ...]) -> Tensor:
    """Positions of the `counts[row]` highest scores of each row, ascending, -1 at the right: [batch, max(counts)]."""
    most = max(counts)
    ranked = scores.masked_fill(~tokens.valid, -torch.inf)
    kept = ranked.argsort(dim=-1, descending=True, stable=True)[:, :most]  # [batch, most], best first
    if min(counts) == most:
        return kept.sort(dim=-1).values
    rank = torch.arange(most, device=kept.device)
    beyond = rank >= torch.tensor(counts, device=kept.device)[:, None]
    width = scores.shape[1]
    kept = kept.masked_fill(beyond, width).sort(dim=-1).values  # the surplus sorts to the right
    return kept.masked_fill(kept == width, -1)
