"""Oracle: scores from outside, such as a segmentation mask or the answer's box."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from prunekit.errors import PolicyError
from prunekit.needs import Needs
from prunekit.policy import ScoringPolicy
from prunekit.tokens import VisualTokens

__all__ = ["Oracle"]


@dataclass(frozen=True)
class Oracle(ScoringPolicy):
    """Keep the visual tokens with the highest scores that you give: what the best choice would be worth.

    Set `session.side[name]` to a tensor [batch, visual], by original numbers, before the model runs. Scores that are
    the same for all tokens of a row are refused, as those of any policy.

    Args:
        name: of the tensor.
    """

    name: str = "scores"

    sites = ("input", "decoder")

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        return Needs(side=self.name)

    def score(self, tokens: VisualTokens) -> Float[Tensor, "batch visual"]:
        given = tokens.side[self.name].to(tokens.hidden.device)
        if given.ndim != 2 or given.shape[0] != len(tokens.total) or given.shape[1] < max(tokens.total):
            raise PolicyError(
                f"Oracle: session.side[{self.name!r}] must be [batch, visual] = [{len(tokens.total)},"
                f" {max(tokens.total)}]; it is {list(given.shape)}."
            )
        return given.float().gather(1, tokens.source.clamp(min=0))
