"""FlowCut: follow the flow of information through the encoder, and cut what it leaves behind."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from prunekit.errors import ScoresError, SiteError
from prunekit.keep import Keep
from prunekit.needs import Needs, Rows, States
from prunekit.plan import Method, Shape, Stage
from prunekit.policies._greedy import picked
from prunekit.policy import Products, PruningPolicy
from prunekit.reference import Reference
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

__all__ = ["FlowCut"]

_MEMORY = "FlowCut scores"


@dataclass(frozen=True)
class FlowCutStage(PruningPolicy):
    """One cut of `FlowCut`, behind encoder layer `layer`.

    Args:
        layer: whose outgoing flow is the newest.
        left: layers until the last cut, 0 for the last.
        target: tokens after the last cut.
        released: whether all images of a batch are cut alike.
    """

    layer: int
    left: int
    target: Keep
    released: bool = False

    sites = ("vision",)

    @property
    def needs(self) -> Needs:  # type: ignore[override]
        rows, states = [], []
        for layer in self._layers:
            rows.append(Rows("cls", layer, reduce="mean"))
            states += [States("value", layer), States("value", layer, of="cls")]
        return Needs(rows, states=states)

    @property
    def needs_keep(self) -> bool:  # type: ignore[override]
        return self.left == 0

    @property
    def coupled(self) -> bool:  # type: ignore[override]
        return self.released and self.left > 0

    @property
    def waits(self) -> bool:  # type: ignore[override]
        return self.left > 0

    @property
    def _layers(self) -> range:
        return range(max(0, self.layer - 1), self.layer + 1)

    def scores(self, tokens: VisualTokens, layer: int) -> Tensor:
        """Cumulative scores after a layer, [batch, visual]; remembered for the next one."""
        seen = tokens.attention[Rows("cls", layer, reduce="mean")].float().masked_fill(~tokens.valid, 0)
        seen = seen / seen.sum(1, keepdim=True).clamp(min=torch.finfo(seen.dtype).tiny)
        values = tokens.states[States("value", layer)].float()
        cls = tokens.states[States("value", layer, of="cls")].float()
        both = torch.cat([cls, values], 2)
        logits = (cls @ both.transpose(2, 3))[:, :, 0]  # [batch, heads, 1 + visual]
        logits[..., 1:] = logits[..., 1:].masked_fill(~tokens.valid[:, None], -torch.inf)
        similar = logits.softmax(-1)[..., 1:].mean(1)
        similar = similar / similar.sum(1, keepdim=True)
        new = (seen + similar) * values.mean(1).abs().sum(-1)
        before = tokens.memory.get(_MEMORY)
        index = tokens.source.clamp(min=0)
        if isinstance(before, Tensor):
            new = 0.5 * before.gather(1, index) + 0.5 * new
        whole = new.new_zeros(len(new), max(tokens.total) + 1)
        place = tokens.source.masked_fill(~tokens.valid, max(tokens.total))
        tokens.memory[_MEMORY] = whole.scatter(1, place, new)
        return new

    def products(self, given: Products) -> int:
        return len(self._layers) * (given.now + 1) * given.width

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        scores = torch.stack([self.scores(tokens, layer) for layer in self._layers])[-1]
        counts = tokens.budget(self.target) if keep is None else tokens.budget(keep)
        if self.left:
            counts = self._counts(tokens, counts)
        order = scores.masked_fill(~tokens.valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
        selection = picked(order[:, : max(counts)], counts, scores.shape[1])
        return Selection(selection.kept, counts, scores)

    def _counts(self, tokens: VisualTokens, targets: tuple[int, ...]) -> tuple[int, ...]:
        seen = tokens.attention[Rows("cls", self.layer, reduce="mean")].float().masked_fill(~tokens.valid, 0)
        shares = seen / seen.sum(1, keepdim=True).clamp(min=torch.finfo(seen.dtype).tiny)
        entropy = -torch.special.xlogy(shares, shares).sum(1)
        ratios = [e / math.log(max(2, n)) for e, n in zip(entropy.tolist(), tokens.counts, strict=True)]  # a host read
        if not all(map(math.isfinite, ratios)):
            raise ScoresError(f"FlowCut: [CLS] attention of encoder layer {self.layer} holds NaN; it tells nothing.")
        if self.released:
            ratios = [min(ratios)] * len(ratios)  # the largest number of all
        drops = (
            round((now - target) / self.left**0.5 * (1 - ratio**2))
            for now, target, ratio in zip(tokens.counts, targets, ratios, strict=True)
        )
        return tuple(
            max(target, now - max(0, drop)) for now, target, drop in zip(tokens.counts, targets, drops, strict=True)
        )


@dataclass(frozen=True)
class FlowCut(Method):
    """FlowCut (Tong et al., NeurIPS 2025, arXiv 2505.19536): redundancy is in the flow of information.

    Behind every second layer of the vision encoder, tokens with the lowest cumulative score go. A layer's score is
    `(a_i + s_i) |v_i|_1`: a the [CLS] attention and `s = softmax(v_cls v_j)` of its values, each brought to sum 1,
    heads averaged; it is averaged half and half with that of the layers before. A cut takes
    `(n - keep) / sqrt(layers left) * (1 - e^2)` of n tokens, e the entropy of [CLS] attention over that of an even one;
    the last cut leaves `keep`. Authors' code: github.com/TungChintao/FlowCut.

    Args:
        keep: visual tokens that leave the encoder: a share of the original ones (float) or a number (int).
        variant: `released` cuts as much of all images of a batch as of the one that loses most; `paper` cuts each by
            itself.

    Differs from the reference: for LLaVA-NeXT the authors cut once more in the language model; this does not.
    """

    keep: int | float | Keep = 64
    variant: Literal["paper", "released"] = "paper"

    positions = "compact"
    reference = Reference(
        name="FlowCut",
        arxiv="2505.19536",
        year=2025,
        authors="Tong et al.",
        venue="NeurIPS",
        code="https://github.com/TungChintao/FlowCut",
        commit="a2ecd24",
        variants=("paper", "released"),
    )

    def stages_of(self, shape: Shape) -> tuple[Stage, ...]:
        last, keep = shape.features - 1, Keep.of(self.keep)
        if last < 0:
            raise SiteError("FlowCut cuts inside the vision encoder, whose layers are out of reach on this model.")
        layers = range(last % 2, last + 1, 2)
        return tuple(
            Stage(
                f"vision.{layer}",
                FlowCutStage(layer, last - layer, keep, self.variant == "released"),
                keep if layer == last else None,
            )
            for layer in layers
        )
