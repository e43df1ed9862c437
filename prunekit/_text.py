"""The language model's half of a session: pruning at its input and between decoder layers, in prefill and decode.

One path serves every call. A call brings new columns; a call with visual tokens is pruned, and each layer's cache
remembers which columns it holds (`PrunedLayer`), so that the masks of later calls can be cut to them. The model is
handed everything at full length and makes positions and masks by its own code; what is dropped is dropped between the
model and its layers.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from prunekit._adapter import ModelAdapter
from prunekit._align import Layers, images_of
from prunekit._call import Call, Sent
from prunekit._decoder import Decoder
from prunekit._decoder_taps import DecoderTaps
from prunekit._placeholders import check_counts, explain_positions, sends_images, warn_dense
from prunekit._replay import Replay
from prunekit._stages import Stages
from prunekit._vision import VisionSide
from prunekit.cache import PrunedLayer, given_cache, new_columns, set_running
from prunekit.errors import UnsupportedCacheError, UnsupportedInputError, UnsupportedModelError
from prunekit.patches import Encoded, Image
from prunekit.sequence import Sequence, gather, scatter

__all__ = ["TextSide"]


class TextSide:
    """Hooks of the multimodal core and of the language model."""

    def __init__(
        self, adapter: ModelAdapter, layers: Layers, vision: VisionSide, stages: Stages, decoder: Decoder
    ) -> None:
        self.adapter, self.vision, self.stages, self.decoder = adapter, vision, stages, decoder
        self.taps = DecoderTaps(adapter, layers, decoder, lambda: self.call)
        self.call: Call | None = None
        self.sent: Sent | None = None
        self.given: dict[str, Any] | None = None  # what the core was given, while it runs
        self.holes = False  # whether some layer's cache holds padding
        self.replay = Replay()
        self.warned = False
        self.embeds = any(w.kind == "embedding" for stage in stages.plan.stages for w in stage.policy.needs.states)

    def attach(self, hooks: ExitStack) -> None:
        """Attach everything; `hooks` takes it off again."""
        self.vision.done = self._check_counts
        explain_positions(self.adapter.core, hooks)
        adapter, layers = self.adapter, self.adapter.decoder_layers
        handles: list[Any] = [
            adapter.core.register_forward_pre_hook(self._core, with_kwargs=True),
            adapter.core.register_forward_hook(self._done, always_call=True),
            adapter.text_model.register_forward_pre_hook(self._enter, with_kwargs=True),
            adapter.text_model.register_forward_hook(self._leave, always_call=True),
        ]
        if adapter.norm is not None:
            handles.append(adapter.norm.register_forward_hook(self._behind, prepend=True))
        for index in range(self.stages.first, len(layers)):  # layers before the first stage are as they are
            layer = layers[index]
            handles.append(layer.register_forward_pre_hook(self._before(index), with_kwargs=True))
            if adapter.full_length_after(index):
                handles.append(layer.register_forward_hook(self._after, prepend=True))
        handles += self.taps.attach(layers)
        for handle in handles:
            hooks.callback(handle.remove)

    def release(self) -> None:
        """Let go of all tensors, and of a cache whose call was interrupted."""
        if self.call is not None:
            set_running(self.call.cache, False)
        self.call = self.sent = None
        self.replay.forget()

    # --- the model's entry: what was sent ----------------------------------------------------------------------------

    def _core(self, module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        if args:
            kwargs = {**dict(zip(inspect.signature(module.forward).parameters, args, strict=False)), **kwargs}
        encoded = {kind: out for kind, out in (kwargs.get("mm_encoder_outputs") or {}).items() if out is not None}
        kwargs = new_columns(kwargs)
        self.holes = set_running(given_cache(kwargs), True)
        self.vision.accept(encoded)
        self.sent, self.given = None, kwargs
        if encoded or sends_images(kwargs):
            self.sent = Sent.read(*self._placeholders(kwargs), kwargs.get("attention_mask"), kwargs.get("input_ids"))
            for each in self.vision.encoded.values():
                self._check_counts(each)
        return (), kwargs

    def _done(self, module: nn.Module, args: Any, output: Any) -> None:
        """Forget what was sent; the core may have failed before the language model took it."""
        self.sent = self.given = None

    def _placeholders(self, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None]:
        """Columns of placeholders for images and, where they have ids of their own, for videos: [batch, length]."""
        ids, embeds, adapter = kwargs.get("input_ids"), kwargs.get("inputs_embeds"), self.adapter
        image, video = (
            adapter.placeholders(each, ids, embeds) if each else None for each in (adapter.image_ids, adapter.video_ids)
        )
        if image is None:
            assert video is not None  # adapters have checked that there is one of them
            image = torch.zeros_like(video)
        return image, video

    def _check_counts(self, encoded: Encoded) -> None:
        """Refuse features that do not fill the placeholders, before the model does so with less to say."""
        encoded.used = self.sent is not None
        if self.sent is None or not encoded.total:
            return
        check_counts(self.sent, encoded.kind, *self.vision.sizes(encoded))

    # --- the language model's entry ----------------------------------------------------------------------------------

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.call, given = None, self.given
        embeds, cache = kwargs.get("inputs_embeds"), given_cache(kwargs)
        columns = embeds if embeds is not None else kwargs.get("input_ids", args[0] if args else None)
        if columns is None:
            return
        holes = self.holes if given is not None else set_running(cache, True)
        if cache is not None and any(isinstance(layer, PrunedLayer) for layer in cache.layers[: self.stages.first]):
            raise UnsupportedCacheError(
                f"This KV cache was pruned before decoder layer {self.stages.first}, where the stages of this session"
                " begin: go on with it in a session with the stages that filled it."
            )
        base = cache.get_seq_length() if cache is not None else 0
        batch, length = columns.shape[:2]
        mask = kwargs.get("attention_mask")
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[-1] != base + length:
            raise UnsupportedInputError(
                f"attention_mask describes {mask.shape[-1]} tokens, but the KV cache has seen {base} and {length} are"
                " new; pass the mask of the whole conversation, dropped visual tokens included."
            )
        positions = kwargs.get("position_ids")
        if positions is None and self.decoder.compact:
            positions = torch.arange(base, base + length, device=columns.device)[None]
        call = self.call = Call(batch, length, base, holes, cache, positions, None)
        if self.sent is not None and any(self.sent.counts):
            call.sent = self.sent
        self.sent = None
        if call.sent is None:
            if not base and given is None and embeds is not None:
                raise UnsupportedInputError(
                    f"The language model of {type(self.adapter.model).__name__} was given embeddings without the model"
                    " around it: where images are among them cannot be told. Call the whole model; a family whose own"
                    " generate() bypasses its forward cannot generate in a session."
                )
            if not base and not self.warned:
                self.warned = True
                warn_dense(() if given is None else self._placeholders(given))
            return
        self._begin(call, call.sent, embeds, kwargs)

    def _begin(self, call: Call, sent: Sent, embeds: Tensor | None, kwargs: dict[str, Any]) -> None:
        """Set up the pruning of a prompt, and drop what stages inside the encoder have dropped already."""
        call.sequence = Sequence.of(sent.visual, sent.tokens, sent.counts, sent.others)
        call.numbers = images_of(sent, self.vision.encoded)
        if call.numbers is not None:
            sizes = [tokens for kind in self.vision.kinds for tokens in self.vision.encoded[kind].tokens or ()]
            images = [Image(tokens, self.adapter.grid_of(tokens)) for tokens in sizes]
            call.images = tuple(tuple(images[number] for number in row) for row in call.numbers)
        self.stages.check(call)
        usual = getattr(self.decoder.config, "use_cache", True)
        cached = given_cache(kwargs) is not None or kwargs.get("use_cache", usual)
        if cached or embeds is None:
            self.replay.forget()
        else:
            columns, valid = call.sequence.visual_columns
            late = [part for each in self.vision.encoded.values() if each.late for part in each.features]
            features = torch.cat(late) if late else gather(embeds, columns) * valid[..., None]
            call.replay = self.replay.begins(sent.ids, features)
        call.memory = dict(self.vision.memory)
        call.embeds = embeds if self.embeds else None
        self.stages.leave_out(call, sent, self.vision)

    # --- decoder layers ----------------------------------------------------------------------------------------------

    def _before(self, layer: int) -> Callable[..., Any]:
        last = layer == self.adapter.depth - 1

        def before(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any] | None:
            call = self.call
            if call is None:
                return None
            if args:
                hidden, *others = args
            else:
                hidden, others = kwargs["hidden_states"], []
            given = hidden
            if layer == 0 and call.sequence is not None and hidden.ndim != 3:
                raise UnsupportedModelError(
                    f"The decoder layers of {type(self.adapter.model).__name__} work on states of shape"
                    f" {list(hidden.shape)} instead of [batch, length, dim]; it cannot be pruned."
                )
            if call.restored and call.left is not None and hidden.shape[1] == call.length:
                hidden, call.restored = gather(hidden, call.left), False
            if layer in self.stages.by_layer and call.sequence is not None:
                ahead = partial(self.taps.ahead, call, layer, module, hidden, tuple(others), kwargs)
                hidden = self.stages.run(call, layer, hidden, self.vision, self.replay, ahead)
            call.ending = last
            changed = self.decoder.cut(call, layer, hidden, tuple(others), kwargs)
            if changed is None and hidden is given:
                return None
            others, kwargs = changed or (others, kwargs)
            return ((hidden, *others), kwargs) if args else ((), {**kwargs, "hidden_states": hidden})

        return before

    def _after(self, module: nn.Module, args: Any, output: Any) -> Any:
        """Put the states back into the caller's columns, where the model itself works on them."""
        call = self.call
        if call is None or call.left is None:
            return output
        hidden = output[0] if isinstance(output, tuple) else output
        if hidden.shape[1] == call.left.shape[1]:  # otherwise the model has cut it to the last tokens itself
            call.restored, hidden = True, scatter(hidden, call.left, call.length)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    def _behind(self, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """The same behind the final norm, which policies may call before it is reached."""
        call = self.call
        if call is None or call.left is None or call.restored or not call.ending:
            return output
        return scatter(output, call.left, call.length)

    def _leave(self, module: nn.Module, args: Any, output: Any) -> None:
        call, self.call = self.call, None
        if call is not None:
            set_running(call.cache, False)
