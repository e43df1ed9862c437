"""ToMe: merge a few tokens in every layer of the vision encoder."""

from __future__ import annotations

from dataclasses import dataclass

from prunekit.errors import SiteError
from prunekit.keep import Keep
from prunekit.plan import Method, Shape, Stage
from prunekit.policies.bipartite_matching import BipartiteMatching

__all__ = ["ToMe"]


@dataclass(frozen=True)
class ToMe(Method):
    """ToMe (Bolya et al., ICLR 2023, arXiv 2210.09461): token merging.

    Behind every layer of the vision encoder, the most similar pairs of tokens merge (`BipartiteMatching`), equally many
    in each layer. [CLS] and registers never merge. Authors' code: github.com/facebookresearch/ToMe.

    Args:
        keep: visual tokens that leave the encoder: a share of the original ones (float) or a number (int).
        proportional: whether attention weighs tokens by their sizes, as published for models that were not trained with
            merging. An encoder that runs on all images in one sequence, or whose layers take no mask, cannot: turn it
            off there.

    Differs from the reference: tokens merge behind a layer, and not between its attention and its MLP. Kept tokens stay
    in the order of the image; the order that turns are counted by is the authors'.
    """

    keep: int | float | Keep = 0.25
    proportional: bool = True

    positions = "compact"
    reference = BipartiteMatching.reference

    def stages_of(self, shape: Shape) -> tuple[Stage, ...]:
        steps = shape.features + 1
        if steps < 1:
            raise SiteError("ToMe merges inside the vision encoder, whose layers are out of reach on this model.")
        last = Keep.of(self.keep)
        return tuple(
            Stage(
                f"vision.{number}",
                BipartiteMatching((number, steps, last), self.proportional),
                last if number == steps - 1 else None,
            )
            for number in range(steps)
        )
