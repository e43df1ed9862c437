"""STAR: visual self-attention first, text-to-visual cross-attention later."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from prunekit.errors import BudgetError, SiteError
from prunekit.keep import Keep
from prunekit.plan import Method, Stage
from prunekit.policies.cross_attention import CrossAttention
from prunekit.policies.self_attention import SelfAttention

__all__ = ["STAR"]


@dataclass(frozen=True)
class STAR(Method):
    """STAR (Guo et al., arXiv 2505.12359): stage-wise attention-guided token reduction.

    Stage 1, right after the vision encoder, drops what is redundant within the image (`SelfAttention`); stage 2,
    before a middle decoder layer K, drops what the question does not need (`CrossAttention`). Tokens stay in order
    and keep their positions. The authors have released no code, and the values of R, P and K were not available to
    us: the defaults below are prunekit's choices, not the paper's.

    Args:
        keep: visual tokens after stage 2: a share of the ORIGINAL count (float) or a number (int).
        visual_keep: the same after stage 1; by default the square root of `keep`, so that both stages drop the same
            share of what they are given (for a number: the square root of keep x original count).
        layer: K; by default half the depth (16 of 32). At or beyond the depth, stage 2 is off.
        visual_queries: the score of stage 1, see `SelfAttention`.
        text_queries: the score of stage 2, see `CrossAttention`.

    Differs from the reference: both scores are attention received (softmax over keys, mean over queries), since the
    published equation, read literally, gives all tokens the same score; and both read the model's own attention by
    default.
    """

    keep: int | float | Keep = 0.25
    visual_keep: int | float | Keep | None = None
    layer: int | None = None
    visual_queries: Literal["visual", "cls", "embedding"] = "visual"
    text_queries: Literal["text", "last", "instruction"] = "text"

    reference = SelfAttention.reference

    @classmethod
    def from_ratios(cls, R: float, P: float, K: int | None = None, **options: Any) -> STAR:
        """Build from the paper's symbols.

        Args:
            R: share that stage 1 drops.
            P: share of the survivors of stage 1 that stage 2 drops.
            K: the layer of stage 2.
            options: further fields.

        Raises:
            BudgetError: R or P outside [0, 1).
        """
        for name, value in (("R", R), ("P", P)):
            if not 0 <= value < 1:
                raise BudgetError(
                    f"STAR.from_ratios({name}={value}): a share that is dropped is at least 0 and below 1."
                )
        return cls(keep=(1 - R) * (1 - P), visual_keep=1 - R, layer=K, **options)

    def stages(self, depth: int) -> tuple[Stage, ...]:
        layer = depth // 2 if self.layer is None else self.layer
        if layer < 1:
            raise SiteError(
                f"STAR(layer={layer}): stage 2 comes before a decoder layer from 1 on; {depth} or more turns it off."
            )
        first = Stage("input", SelfAttention(self.visual_queries), self._first())
        if layer >= depth:
            return (first,)
        return first, Stage(f"decoder.{layer}", CrossAttention(self.text_queries), Keep.of(self.keep))

    def _first(self) -> Keep:
        if self.visual_keep is not None:
            return Keep.of(self.visual_keep)
        return replace(Keep.of(self.keep), power=0.5)
