"""Reading the language model while it runs: attention rows and states of its layers, noted in the call at hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from prunekit._adapter import ModelAdapter
from prunekit._align import Layers, spread
from prunekit._call import Call, text_columns, text_rows
from prunekit._decoder import Decoder
from prunekit.attention import attention_rows, look_ahead, tap
from prunekit.cache import NAMES
from prunekit.errors import NeedsError
from prunekit.needs import Rows, States
from prunekit.sequence import gather
from prunekit.trace import cost_scope

__all__ = ["DecoderTaps"]


class DecoderTaps:
    """What the policies of a plan read of the decoder's layers.

    Args:
        layers: which layer each row set, and the states, of each stage are read from.
        running: the call at hand, None outside the language model.
    """

    def __init__(
        self, adapter: ModelAdapter, layers: Layers, decoder: Decoder, running: Callable[[], Call | None]
    ) -> None:
        self.adapter, self.layers, self.decoder, self.running = adapter, layers, decoder, running

    def attach(self, layers: Any) -> list[Any]:
        """Tap the attention of decoder layers; returns the handles."""
        wanted: dict[int, set[Rows | States]] = {}
        for (_, rows), layer in self.layers.items():
            if not rows.of_vision and rows.of_layer:
                wanted.setdefault(layer, set()).add(rows)
        handles: list[Any] = []
        for layer, rows_of_layer in wanted.items():
            handles += tap(self.adapter.attention(layers[layer]), self._observer(layer, rows_of_layer), self._prunes)
        return handles

    def ahead(
        self, call: Call, layer: int, module: nn.Module, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Read the attention of a layer that has not run, on the states of all columns that are left."""
        if call.base:
            raise NeedsError(
                "Rows(ahead=True) reads a layer that has not run, which a prompt behind a filled KV cache does not"
                " allow; read the layer before the site instead (ahead=False)."
            )
        kwargs = {name: None if name in NAMES else value for name, value in kwargs.items()}
        args, kwargs = self.decoder.cut(call, layer, hidden, args, kwargs) or (args, kwargs)
        wanted = {rows for (_, rows), at in self.layers.items() if at == layer and not rows.of_layer}
        with cost_scope(f"scorer.decoder.{layer}"):
            look_ahead(module, self.adapter.attention(module), hidden, args, kwargs, self._observer(layer, wanted))

    def _prunes(self) -> bool:
        """Whether the call at hand is a prompt that is pruned."""
        call = self.running()
        return call is not None and call.sequence is not None

    def _observer(self, layer: int, wanted: set[Rows | States]) -> Callable[..., None]:
        def observe(module: nn.Module, query: Tensor, key: Tensor, mask: Any, **kwargs: Any) -> None:
            call = self.running()
            if call is None or call.sequence is None or call.sent is None or call.replay:
                return
            columns, valid = call.sequence.visual_columns
            ordinals = call.sequence.ordinal.gather(1, columns).masked_fill(~valid, -1)
            cached = key.shape[2] - query.shape[2]
            for rows in wanted:
                if isinstance(rows, States):
                    whole, of_text = key if rows.kind == "key" else kwargs["value"], rows.of == "text"
                    place = text_columns(call.sequence)[0] if of_text else columns
                    states = gather(whole, place + cached, 2).transpose(-1, -2)
                    full = states if of_text else spread(states, ordinals, max(call.sent.counts))
                    call.attention[rows, layer] = full
                    continue
                index, real = text_rows(rows, call.sequence, call.sent)
                with cost_scope(f"scorer.decoder.{layer}"):
                    seen = attention_rows(
                        module, query, key, mask, index, real, columns + cached,
                        scaling=kwargs.get("scaling"), softcap=kwargs.get("softcap"),
                        reduce=rows.reduce, joined=rows.joined,
                    )  # fmt: skip
                call.attention[rows, layer] = spread(seen, ordinals, max(call.sent.counts))

        return observe
