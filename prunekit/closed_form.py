"""What a prefill costs, from the shapes of a model alone: no weights, no run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prunekit._closed_form import Decoder, Encoder, linear

if TYPE_CHECKING:
    from prunekit.flops import Cost

__all__ = ["closed_form"]


def closed_form(
    model_or_config: Any,
    visual: Sequence[int],
    text: int,
    *,
    images: int = 1,
    batch: int = 1,
    encoder: Sequence[int] | None = None,
    scorers: Mapping[str, int] | None = None,
    logits_to_keep: int = 1,
) -> Cost:
    """The same cost from shapes alone, for LLaVA with a CLIP encoder; needs no weights and no run.

    Args:
        model_or_config: a `LlavaConfig`, or a model that has one.
        visual: visual tokens of a sample that enter each decoder layer, e.g. `prunekit.budget.tokens_per_layer(...)`.
        text: all other tokens of a sample.
        images: images of a sample.
        batch: samples.
        encoder: tokens in each layer of the encoder, [CLS] included; by default all of them.
        scorers: multiply-adds of the policies, by scope.
        logits_to_keep: positions that go through the output head.
    """
    from prunekit.flops import Cost  # here, because flops exports this function

    config = getattr(model_or_config, "config", model_or_config)
    eyes, language = Encoder.of(config.vision_config), Decoder.of(config.text_config)
    lengths = [eyes.tokens] * eyes.depth if encoder is None else encoder
    features = config.vision_feature_layer
    width = eyes.hidden * (1 if isinstance(features, int) else len(features))
    projector = linear(eyes.patches, width, language.hidden) + linear(eyes.patches, language.hidden, language.hidden)
    per_layer = tuple(batch * language.layer(tokens + text) for tokens in visual)
    macs = {
        "vision": batch * images * (eyes.embedding() + sum(eyes.layer(tokens) for tokens in lengths)),
        "projector": batch * images * projector,
        "scorer": sum((scorers or {}).values()),
        "prefill": sum(per_layer),
        "lm_head": batch * language.head(logits_to_keep),
    }
    return Cost(macs, per_layer, dict(scorers or {}), tuple(batch * tokens for tokens in visual))
