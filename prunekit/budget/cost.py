"""What stages cost on a model, from shapes alone: the measures that budgets are stated in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import nn

from prunekit.budget.levels import tokens_per_layer
from prunekit.budget.scorers import scorers
from prunekit.costs.closed_form_text import Decoder, Encoder
from prunekit.errors import BudgetError, UnsupportedModelError
from prunekit.plan import Shape, Stage

__all__ = ["CostModel", "Latency", "LatencyTable"]

Latency = Callable[[Sequence[int]], float]
"""Tokens that enter each decoder layer, text among them, to the time of a prefill in any unit."""


@dataclass(frozen=True)
class LatencyTable:
    """Prefill time of a language model from measured times of one layer, linear between them.

    Attributes:
        measured: tokens in a layer to the time that the layer takes, in any unit.
    """

    measured: Mapping[int, float]

    def __post_init__(self) -> None:
        if len(self.measured) < 2 or min(self.measured.values()) <= 0:
            raise BudgetError(f"LatencyTable({dict(self.measured)}): give at least two lengths, and times above 0.")

    def __call__(self, lengths: Sequence[int]) -> float:
        """The sum over layers.

        Raises:
            BudgetError: a layer has fewer or more tokens than were measured.
        """
        return sum(map(self._layer, lengths))

    def _layer(self, tokens: int) -> float:
        known = sorted(self.measured)
        for low, high in pairwise(known):
            if low <= tokens <= high:
                share = (tokens - low) / (high - low)
                return self.measured[low] * (1 - share) + self.measured[high] * share
        raise BudgetError(
            f"LatencyTable: a layer of {tokens} tokens was not measured; measured are {known[0]} to {known[-1]}."
        )


@dataclass(frozen=True)
class CostModel:
    """A model's shapes, and what follows from them for a prompt.

    Attributes:
        shape: its layers.
        decoder: the language model.
        encoder: the vision encoder; None where its cost is not known or depends on the image.
        per_image: visual tokens of an image; 0: all of a sample are those of one.
        value_bytes: of a number in the KV cache; 2 for float16 and bfloat16.
    """

    shape: Shape
    decoder: Decoder
    encoder: Encoder | None = None
    per_image: int = 0
    value_bytes: int = 2

    @classmethod
    def of(cls, model: Any, value_bytes: int = 2) -> CostModel:
        """Read the shapes of a model, which may be one without weights on the meta device, or of a config.

        Raises:
            UnsupportedModelError: no closed form is known for its language model.
        """
        from prunekit.adapter import adapter_for

        adapter = adapter_for(model if isinstance(model, nn.Module) else _skeleton(model))
        config: Any = adapter.model.config
        encoder, per_image = None, adapter.tokens_per_image
        if adapter.shape.encoder and per_image:
            try:
                encoder = Encoder.of(config.vision_config)
            except UnsupportedModelError:
                encoder = None  # stages that read it are refused when they are to be counted
        decoder = Decoder.of(config.get_text_config(decoder=True))
        return cls(adapter.shape, decoder, encoder, per_image or 0, value_bytes)

    def prefill(self, levels: Sequence[int], text: int) -> int:
        """Multiply-adds of the decoder layers with these visual tokens in each, and `text` others."""
        return sum(self.decoder.layers([count + text for count in levels]))

    def work(self, stages: Sequence[Stage], visual: int, text: int, behind: int | None = None) -> tuple[int, int]:
        """Multiply-adds of the decoder layers, and of the policies.

        Args:
            stages: what is pruned; none for the dense model.
            visual: visual tokens of a sample.
            text: its other tokens.
            behind: those of them that come after the image; by default all.

        Raises:
            BudgetError: a policy's cost is not known.
        """
        levels = self._levels(stages, visual)
        images = max(1, visual // (self.per_image or visual))
        own = scorers(stages, self.shape, self.decoder, self.encoder, levels, visual, text, behind, images)
        return self.prefill(levels, text), sum(own.values())

    def flops(self, stages: Sequence[Stage], visual: int, text: int) -> float:
        """Decoder layers and policies, as a share of the dense decoder layers; see `work`."""
        return sum(self.work(stages, visual, text)) / self.work((), visual, text)[0]

    def cache(self, stages: Sequence[Stage], visual: int, text: int) -> int:
        """Bytes of the KV cache after the prefill."""
        pruned = min((stage.where.index * (stage.where.part == 2) for stage in stages), default=None)
        lengths = [count + text for count in self._levels(stages, visual)]
        return sum(self.decoder.cache_bytes(lengths, value_bytes=self.value_bytes, pruned=pruned))

    def _levels(self, stages: Sequence[Stage], visual: int) -> tuple[int, ...]:
        return tokens_per_layer(stages, visual, self.shape) if stages else (visual,) * self.shape.depth


def _skeleton(config: Any) -> nn.Module:
    import torch
    from transformers import AutoModelForImageTextToText

    with torch.device("meta"):
        skeleton: nn.Module = AutoModelForImageTextToText.from_config(config, attn_implementation="sdpa")
    return skeleton
