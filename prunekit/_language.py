"""The language model's half of an adapter: what can be found on any model that follows transformers' conventions."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from prunekit._contract import check_model, refusal
from prunekit.errors import NeedsError, SessionError, UnsupportedModelError

__all__ = ["LanguageModel"]

IMAGE_IDS = ("image_token_id", "image_token_index", "media_placeholder_token_id")
VIDEO_IDS = ("video_token_id", "video_token_index")
# fmt: off
HANDING_ON = frozenset((
    "AriaTextModel", "ChameleonModel", "Cohere2Model", "Cosmos3EdgeTextModel", "DeepseekOcr2TextModel",
    "DeepseekV3Model", "Dots3NoteTextModel", "Emu3TextModel", "Ernie4_5_VLMoeTextModel", "Exaone4Model", "Gemma2Model",
    "Gemma4TextModel", "Gemma4UnifiedTextModel", "GlmOcrTextModel", "HunYuanVLTextModel", "HyperCLOVAXModel",
    "Lfm2Model", "Lfm3Model", "Llama4TextModel", "LlamaModel", "MistralLarge4TextModel", "MistralModel",
    "MuseGlimmerTextModel", "MuseSparkTextModel", "OPTDecoder", "PaddleOCRTextModel", "PersimmonModel",
    "Phi4MultimodalModel", "Qwen2Model", "Qwen2_5OmniThinkerTextModel", "Qwen3Model", "Qwen3_5MoeTextModel",
    "Qwen3_5TextModel", "Step3p7TextModel", "UnlimitedOcrTextModel",
))
# fmt: on
"""Language models of transformers that hand each layer just what the one before it returned; a test looks at each."""

WITHOUT_KEYS = frozenset(("conv", "linear_attention", "mamba", "recurrent", "moe", "mlp"))
"""Kinds of decoder layers that look at no keys: recurrent ones and convolutions keep a state, others nothing."""

NORMS = ("norm", "final_layernorm", "final_layer_norm", "ln_f", "norm_f")


class LanguageModel:
    """Names of the parts of a model that read its sequence.

    Raises:
        UnsupportedModelError: the model lacks what pruning needs; the message says what.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model: Any = model
        check_model(model, has_placeholders=bool(self.image_ids + self.video_ids))
        if "inputs_embeds" not in inspect.signature(self.text_model.forward).parameters:
            raise self._refusal(
                "its decoder is not given the prompt and its images, but reads what another part keeps of them, such as"
                " a KV cache"
            )

    @cached_property
    def text_model(self) -> nn.Module:
        """The language model without its head: it is given `inputs_embeds` and owns the decoder layers."""
        wanted = getattr(self.text_config, "num_hidden_layers", None)
        for module in self.model.get_decoder().modules():
            layers = getattr(module, "layers", None)
            if isinstance(layers, nn.ModuleList) and len(layers) == wanted:
                return module  # type: ignore[no-any-return]
        raise self._refusal("its language model has no list `layers` of decoder layers")

    @cached_property
    def core(self) -> nn.Module:
        """The module that puts image features into the text: it is given `input_ids` and `pixel_values`."""
        inside = [self.model, *(m for m in self.model.modules() if m is not self.model and _owns(m, self.text_model))]
        able = [module for module in inside if hasattr(type(module), "get_image_features")]
        # The outermost only hands on; the innermost that knows of images is the one that runs its encoder.
        core: nn.Module = able[-1] if able else inside[0]
        return core

    @property
    def decoder_layers(self) -> nn.ModuleList:
        """The decoder layers, in order."""
        return self.text_model.layers  # type: ignore[return-value]

    @property
    def lm_head(self) -> nn.Module | None:
        """The output head, or None for a model without one."""
        return self.model.get_output_embeddings()  # type: ignore[no-any-return]

    @property
    def text_config(self) -> Any:
        """Configuration of the language model."""
        return self.model.config.get_text_config(decoder=True)

    @property
    def depth(self) -> int:
        """Number of decoder layers."""
        return len(self.decoder_layers)

    @property
    def hands_on(self) -> bool:
        """Whether the language model is known to leave the states between its layers alone."""
        kind = type(self.text_model)
        return kind.__name__ in HANDING_ON and kind.__module__.startswith("transformers.")

    @property
    def final_norm(self) -> nn.Module:
        """The norm behind the last decoder layer.

        Raises:
            NeedsError: it has none of the usual names.
        """
        if self.norm is None:
            name = type(self.text_model).__name__
            raise NeedsError(f"The final norm of {name} is read, but no part is named as one.")
        return self.norm

    @property
    def norm(self) -> nn.Module | None:
        """The norm behind the last decoder layer, None where it has none of the usual names."""
        found = (getattr(self.text_model, name, None) for name in NORMS)
        return next((each for each in found if isinstance(each, nn.Module)), None)

    @cached_property
    def kinds(self) -> tuple[str, ...]:
        """What transformers calls the kinds of the decoder layers; `full_attention` where all are alike."""
        return tuple(getattr(self.text_config, "layer_types", None) or ["full_attention"] * self.depth)

    @property
    def owning(self) -> int:
        """How many decoder layers have keys of their own; those behind them share the keys of earlier ones."""
        return self.depth - (getattr(self.text_config, "num_kv_shared_layers", 0) or 0)

    def keys_of(self, layer: int) -> int | None:
        """The decoder layer whose keys this one looks at: itself, or where keys are shared the last of its kind.

        None for recurrent layers and convolutions, which keep a state instead.
        """
        if self.kinds[layer] in WITHOUT_KEYS:
            return None
        sources: list[int] | None = getattr(self.text_config, "kv_source_layers", None)
        if sources is not None:
            return sources[layer]
        own = self.owning
        return layer if layer < own else max(each for each in range(own) if self.kinds[each] == self.kinds[layer])

    @property
    def last_site(self) -> int:
        """The last `decoder.<i>`: a layer has to hold the tokens of those that share its keys."""
        sources = [(layer, self.keys_of(layer)) for layer in range(self.depth)]
        return min((source for layer, source in sources if source not in (None, layer)), default=self.depth - 1)

    def sees_images(self, layer: int) -> bool:
        """Whether text looks at all columns in a decoder layer, and not only at those in a window before it."""
        windows = ("sliding_attention", "chunked_attention")
        return self.keys_of(layer) is not None and self.kinds[layer] not in windows

    def attention(self, layer: nn.Module) -> nn.Module:
        """The self-attention module of a decoder layer.

        Raises:
            NeedsError: it is not where it usually is.
        """
        found = getattr(layer, "self_attn", getattr(layer, "mixer", None))  # a layer of Nemotron-H is one mixer
        if not isinstance(found, nn.Module):
            raise NeedsError(
                f"The attention of {type(layer).__name__} cannot be read: the layer has no module `self_attn`."
            )
        return found

    # --- placeholders ------------------------------------------------------------------------------------------------

    @property
    def image_ids(self) -> tuple[int, ...]:
        """Ids of the placeholders in `input_ids` that are filled from images."""
        return self._ids(IMAGE_IDS)

    @property
    def video_ids(self) -> tuple[int, ...]:
        """The same for videos, where they have ids of their own."""
        return tuple(set(self._ids(VIDEO_IDS)) - set(self.image_ids))

    def placeholders(self, ids: tuple[int, ...], input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Which columns hold one of these placeholders, [batch, length], found the way the model finds them."""
        if input_ids is not None:
            return torch.stack([input_ids == each for each in ids]).any(0)
        assert inputs_embeds is not None
        table = self.model.get_input_embeddings()  # called, and not indexed: some scale or normalise what they look up
        rows = table(torch.tensor(ids, device=inputs_embeds.device)).to(inputs_embeds)
        return torch.stack([torch.eq(inputs_embeds, row).all(-1) for row in rows]).any(0)

    def visual_mask(self, input_ids: Tensor | None, inputs_embeds: Tensor | None) -> Tensor:
        """Which columns are visual tokens, [batch, length]."""
        return self.placeholders(self.image_ids + self.video_ids, input_ids, inputs_embeds)

    # --- positions ---------------------------------------------------------------------------------------------------

    def rotary(self, hidden: Tensor, position_ids: Tensor) -> Any:
        """Position embeddings as the decoder layers receive them, for positions [batch, length]."""
        return self.text_model.rotary_emb(hidden, position_ids=position_ids)  # type: ignore[operator]

    def check_compact(self) -> None:
        """Raise `SessionError` where positions cannot be numbered anew: several a token, or tables by kind of layer."""
        rotary = [child for name, child in self.text_model.named_children() if name.startswith("rotary_emb")]
        alike = len(rotary) == 1 and len(inspect.signature(rotary[0].forward).parameters) == 2
        if not alike or self._several_positions:
            raise SessionError(
                f"positions='compact' needs one rotary position a token; those of {type(self.model).__name__} are"
                " learned, have several axes, or have tables that differ between layers. Use positions='original'."
            )

    @property
    def _several_positions(self) -> bool:
        return "mrope" in str(getattr(self.text_config, "rope_parameters", None))  # of all layers, or by kind of layer

    def _ids(self, names: tuple[str, ...]) -> tuple[int, ...]:
        places = (self.model.config, getattr(self.model.config, "vision_config", None))
        found = (getattr(place, name, None) for place in places for name in names)
        return tuple(dict.fromkeys(each for each in found if isinstance(each, int) and each >= 0))

    def _refusal(self, why: str) -> UnsupportedModelError:
        return refusal(self.model, why)


def _owns(module: nn.Module, part: nn.Module) -> bool:
    return any(each is part for each in _below(module))


def _below(module: nn.Module) -> Iterator[nn.Module]:
    yield from (each for each in module.modules() if each is not module)
