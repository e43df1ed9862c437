"""The vision encoder's half of a session: what it made of the images of a prompt, for the language model's half.

A model turns images into features in one method, `get_image_features` (`get_video_features`); `generate` calls it
before the model's forward. For the session's lifetime it is wrapped, so that what the encoder does is tied to the
features that come out of it.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from prunekit._adapter import ModelAdapter
from prunekit._align import Layers
from prunekit._encoder import Pruned, Run
from prunekit._encoder_stages import EncoderStages, Select
from prunekit._encoder_taps import EncoderTaps
from prunekit._placeholders import wrap
from prunekit.errors import NeedsError, UnsupportedInputError
from prunekit.needs import Rows, States
from prunekit.patches import Encoded
from prunekit.plan import Stage

__all__ = ["Select", "VisionSide"]


class VisionSide:
    """Hooks of the vision encoder, and what is known of the images of the latest prompt."""

    def __init__(
        self, adapter: ModelAdapter, plan: tuple[Stage, ...], layers: Layers, select: Select, side: dict[str, Tensor]
    ) -> None:
        self.adapter = adapter
        self.stages = EncoderStages(adapter, plan, layers, select, side, self._running)
        self.taps = EncoderTaps(adapter, layers, self._running)
        self.encoded: dict[str, Encoded] = {}
        self.runs: dict[str, list[Run]] = {}
        self.open: str | None = None  # the kind that is being encoded
        self.patched = any(stage.policy.needs.patches for stage in plan)
        self.done: Callable[[Encoded], None] = lambda encoded: None

    def attach(self, hooks: ExitStack) -> None:
        """Attach everything; `hooks` takes it off again."""
        for kind in ("image", "video"):
            wrap(self.adapter.core, f"get_{kind}_features", functools.partial(self._watched, kind), hooks)
        layers = self.adapter.vision_layers
        if layers is None or not (self.stages.by_layer or self.taps.wanted or self.patched):
            return
        start = layers[0].register_forward_pre_hook(self._start, with_kwargs=True)
        for handle in (start, *self.stages.attach(layers), *self.taps.attach(layers)):
            hooks.callback(handle.remove)

    def forget(self) -> None:
        """Drop what is known: the features that follow come from somewhere else."""
        self.encoded, self.runs, self.open = {}, {}, None

    def accept(self, outputs: dict[str, Any]) -> None:
        """Take features that were made before the model's forward; forget what is known if it is not theirs.

        Raises:
            UnsupportedInputError: they are a part of what the encoder made in this session.
        """
        if any(self.encoded[kind].output is not out for kind, out in outputs.items() if kind in self.encoded):
            if not all(each.used for each in self.encoded.values()):
                raise UnsupportedInputError(
                    "The features of an image arrive in parts; images must arrive whole (generate without"
                    " prefill_chunk_size)."
                )
            self.forget()
        elif not outputs or not outputs.keys() <= self.encoded.keys():
            self.forget()
        self.encoded = {kind: each for kind, each in self.encoded.items() if kind in outputs}

    @property
    def memory(self) -> dict[str, Any]:
        """The scratch of the stages inside the encoder."""
        return next((run.memory for runs in self.runs.values() for run in runs), {})

    # --- for the language model's half -------------------------------------------------------------------------------

    def sizes(self, encoded: Encoded) -> tuple[tuple[int, ...] | None, int]:
        """Visual tokens of each image and of all, in features as they are now: `generate` repeats them for beams."""
        features = encoded.features
        tokens = None if features is None else self.adapter.image_tokens(features, encoded.inputs)
        if tokens is not None:
            return tokens, sum(tokens)
        return None, features.shape[:-1].numel() if isinstance(features, Tensor) else 0

    @property
    def kinds(self) -> list[str]:
        """Kinds of the latest prompt, images before videos."""
        return sorted(self.encoded)

    def attention(self, rows: Rows | States, layer: int) -> Tensor:
        """Tapped rows by visual token, images before videos: [tokens of all images, ...].

        Raises:
            NeedsError: the encoder did not run inside the session on these inputs.
        """
        parts = []
        for kind in self.kinds or [""]:
            runs = self.runs.get(kind, [])
            if not runs or any((rows, layer) not in run.found for run in runs):
                raise NeedsError(
                    f"Attention rows {rows.queries!r} of the vision encoder are needed, but it did not run inside this"
                    " session: pass pixel_values instead of features computed elsewhere."
                )
            values = torch.cat([run.values(rows, layer) for run in runs])
            parts.append(self._to_tokens(values, self.encoded[kind]))
        return torch.cat(parts)

    def patches(self) -> Tensor:
        """The patch of each visual token: [tokens of all images, 2], tile (row of the encoder) and place; -1 if none.

        Raises:
            NeedsError: the encoder did not run inside the session, or tokens are made of several patches.
        """
        parts, tile = [], 0
        for kind in self.kinds or [""]:
            runs = self.runs.get(kind, [])
            if not runs or self.adapter.packed or self.adapter.merge > 1:
                raise NeedsError("The patch of each visual token is read, but tokens of this model have no one patch.")
            rows, patches = sum(run.rows for run in runs), runs[0].patches
            number = torch.arange(tile, tile + rows)[:, None].expand(-1, patches)
            place = torch.arange(patches).expand(rows, -1)
            values = torch.stack([number, place, torch.ones_like(place)], 1).float()
            found = self._to_tokens(values.to(self.encoded[kind].device), self.encoded[kind]).round().long()
            parts.append(torch.where(found[:, 2:] > 0, found[:, :2], -1))
            tile += rows
        return torch.cat(parts)

    def _to_tokens(self, values: Tensor, encoded: Encoded) -> Tensor:
        """Values by patch [rows, ..., patches] by visual token: [tokens, ...]."""
        shape = values.shape[1:-1]
        flat = self.adapter.to_tokens(values.reshape(values.shape[0], -1, values.shape[-1]), encoded)
        if flat.shape[0] != encoded.total:
            raise NeedsError(
                f"{type(self.adapter).__name__} maps the encoder's patches to {flat.shape[0]} visual tokens, but"
                f" {encoded.total} came out of it."
            )
        return flat.view(flat.shape[0], *shape)

    def dropped(self, number: int) -> Pruned:
        """What the stage of this number inside the encoder decided on all images, images before videos.

        Raises:
            NeedsError: the encoder did not run inside the session on these inputs.
        """
        runs = [run for kind in self.kinds for run in self.runs.get(kind, [])]
        if not runs or any(len(run.pruned) <= number for run in runs):
            raise NeedsError(
                "A stage inside the vision encoder cannot prune features that come from elsewhere: run the encoder"
                " inside this session (pass pixel_values), or place the stage at 'input'."
            )
        found = [run.pruned[number] for run in runs]
        scores = [each.scores for each in found if each.scores is not None]
        counts = tuple(count for each in found for count in each.counts)
        flags = torch.cat([each.flags for each in found]).float()
        return Pruned(found[0].stage, flags, torch.cat(scores) if scores else None, counts)

    # --- hooks -------------------------------------------------------------------------------------------------------

    def _watched(self, kind: str, method: Callable[..., Any]) -> Callable[..., Any]:
        signature = inspect.signature(method)

        def watched(*args: Any, **kwargs: Any) -> Any:
            if self.open is not None:  # videos are often encoded as images
                return method(*args, **kwargs)
            self.open, self.runs[kind] = kind, []
            encoded = self.encoded[kind] = Encoded(kind, dict(signature.bind(*args, **kwargs).arguments))
            try:
                encoded.output = output = method(*args, **kwargs)
            finally:
                self.open = None
            encoded.tokens, encoded.total = self.sizes(encoded)
            self.done(encoded)
            return output

        return watched

    def _start(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self.open is None:
            return
        hidden, adapter = args[0] if args else kwargs["hidden_states"], self.adapter
        rows = 1 if adapter.packed else int(hidden.shape[0])
        patches = hidden.shape[:-1].numel() // rows - adapter.prefix_tokens
        self.runs[self.open].append(Run(self.encoded[self.open], adapter.packed, adapter.prefix_tokens, rows, patches))

    def _running(self) -> Run | None:
        """The run that is going on."""
        runs = self.runs.get(self.open or "")
        return runs[-1] if runs else None
