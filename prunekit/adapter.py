"""Adapters name the parts of a model family; they copy no forward.

An adapter says where the vision encoder, the projector and the decoder layers are and how many visual tokens an image
has. Everything else (hooks, gathering, masks, caches) is the session's and the same for all families.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from prunekit.errors import SiteError, UnsupportedInputError, UnsupportedModelError, nearest
from prunekit.plan import Site

__all__ = ["ModelAdapter", "adapter_for", "supported_models"]


class ModelAdapter(ABC):
    """Names of the parts of one loaded model.

    Attributes:
        model_types: values of `config.model_type` that this adapter serves.
        model: the model.
        prefix_tokens: tokens before the patches inside the vision encoder ([CLS], registers); they always stay.
        has_cls: whether the first of them is a [CLS] token.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    prefix_tokens: int = 0
    has_cls: bool = False

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model

    # --- modules -----------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def core(self) -> nn.Module:
        """The module that puts image features into the text: it is given `input_ids` and `pixel_values`."""

    @property
    @abstractmethod
    def text_model(self) -> nn.Module:
        """The language model without its head: it is given `inputs_embeds`."""

    @property
    @abstractmethod
    def vision_tower(self) -> nn.Module:
        """The vision encoder."""

    @property
    @abstractmethod
    def vision_layers(self) -> nn.ModuleList:
        """The layers of the vision encoder, in order."""

    @property
    @abstractmethod
    def projector(self) -> nn.Module:
        """The module between vision encoder and language model."""

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        return self.text_model.layers  # type: ignore[return-value]

    @property
    def lm_head(self) -> nn.Module | None:
        """The output head, or None for a model without one."""
        return getattr(self.model, "lm_head", None)

    def attention(self, layer: nn.Module) -> nn.Module:
        """The self-attention module of a layer of the encoder or the decoder."""
        return layer.self_attn  # type: ignore[return-value]

    # --- numbers -----------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def tokens_per_image(self) -> int:
        """Visual tokens of one image."""

    @property
    @abstractmethod
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the visual tokens of one image."""

    @property
    @abstractmethod
    def feature_layer(self) -> int | None:
        """Index of the encoder layer whose output becomes the visual tokens; None where it is not a single one."""

    @property
    @abstractmethod
    def image_token_id(self) -> int:
        """The placeholder's id in `input_ids`."""

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.decoder_layers)

    @property
    def vision_depth(self) -> int:
        """Number of layers of the vision encoder."""
        return len(self.vision_layers)

    # --- what a call holds -------------------------------------------------------------------------------------------

    def visual_mask(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Which columns are filled from images, [batch, length], found the way the model finds them."""
        if input_ids is not None:
            return input_ids == self.image_token_id
        assert inputs_embeds is not None
        weight = self.model.get_input_embeddings().weight[self.image_token_id]
        return torch.eq(inputs_embeds, weight.to(inputs_embeds)).all(-1)

    def check_visual(self, counts: tuple[int, ...]) -> None:
        """Raise `UnsupportedInputError` where the visual tokens of a call's rows are no whole images."""
        size = self.tokens_per_image
        if any(count % size for count in counts):
            raise UnsupportedInputError(
                f"The rows of this call hold {list(counts)} visual tokens, but an image has {size}: images must"
                " arrive whole (generate without prefill_chunk_size)."
            )

    def rotary(self, hidden: Tensor, position_ids: Tensor) -> Any:
        """Position embeddings as the decoder layers receive them, for positions [batch, length]."""
        return self.text_model.rotary_emb(hidden, position_ids=position_ids)  # type: ignore[operator]

    # --- sites -------------------------------------------------------------------------------------------------------

    def sites(self) -> list[str]:
        """All sites of this model, in the order of the forward pass."""
        last = -1 if self.feature_layer is None else self.feature_layer
        encoder = [f"vision.{i}" for i in range(last + 1)]
        return [*encoder, "input", *(f"decoder.{i}" for i in range(1, self.depth))]

    def check_site(self, site: Site) -> None:
        """Raise `SiteError` where this model cannot offer a site."""
        if site.part != 0 or str(site) in self.sites():
            return
        name, last = type(self.model).__name__, self.feature_layer
        if last is None:
            raise SiteError(
                f"{str(site)!r}: {name} mixes features of several encoder layers, so that no vision site exists."
            )
        raise SiteError(
            f"{str(site)!r}: {name} takes its visual tokens from encoder layer {last} of {self.vision_depth};"
            f" allowed are 'vision.0' to 'vision.{last}'."
        )


def supported_models() -> Mapping[str, type[ModelAdapter]]:
    """Adapters by `config.model_type`."""
    from prunekit import models  # here, because adapters import this module

    return {name: adapter for adapter in models.ADAPTERS for name in adapter.model_types}


def adapter_for(model: nn.Module) -> ModelAdapter:
    """The adapter of a loaded model.

    Raises:
        UnsupportedModelError: its family is not supported.
    """
    known = supported_models()
    name = str(getattr(getattr(model, "config", None), "model_type", None))
    if name not in known:
        raise UnsupportedModelError(
            f"{type(model).__name__} (model_type {name!r}) is no supported vision-language model; supported are"
            f" {', '.join(sorted(known))}.{nearest(name, known)}"
        )
    return known[name](model)
