"""Ways to run one prompt on the same weights, compared by `overhead.py`.

- `dense`: the model as it is.
- `pruned`: the model in a prunekit session.
- `ideal`: the model's own code up to its first decoder layer, then its layers called one after the other, later ones
  on the shortened sequence. The kept tokens are known beforehand, masks, positions and rotary tables are cut beforehand
  and nothing is scored: what pruning would cost if deciding and acting were free.
- `usual`: what a fork does. Attention is eager in all layers, so that the scoring layers hand out their full maps; the
  rest is that of `ideal`, apart from cutting, which has to wait for the scores.
- `front`: what the model does before its first decoder layer, and so a part of every way.

Of prunekit, `ideal`, `usual` and `front` use the names of the model's parts alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from prompts import Prompt
from recording import Arguments, Recording, stopping
from torch import Tensor
from transformers import DynamicCache, DynamicLayer
from transformers.cache_utils import DynamicSlidingWindowLayer

from prunekit import Method, Session, Stage, prune
from prunekit.cache import CACHE

__all__ = ["Dense", "Front", "Ideal", "Pruned", "Usual", "Variant", "recorded"]


class Variant(ABC):
    """One way to run a prefill and then single tokens."""

    attention: str | None = None  # that of all layers; None for the model's own

    def __init__(self, prompt: Prompt) -> None:
        self.prompt, self.model, self.adapter = prompt, prompt.model, prompt.adapter
        self.cache: Any = None

    @contextmanager
    def ready(self) -> Iterator[None]:
        """What a caller does once for many prompts; not timed."""
        text_model: Any = self.adapter.text_model
        text_model.set_attn_implementation({"": self.attention or self.prompt.attention})  # not of an encoder inside it
        yield

    @abstractmethod
    def prefill(self) -> Tensor:
        """Run the prompt; logits of its last position."""

    @abstractmethod
    def step(self, token: Tensor) -> Tensor:
        """Run one token more; its logits."""


class Dense(Variant):
    """The model as it is, called the way `generate` calls it."""

    def prefill(self) -> Tensor:
        output = self.model(**self.prompt.sent, use_cache=True)
        self.cache = output[CACHE]
        return output.logits[:, -1:]  # type: ignore[no-any-return]

    def step(self, token: Tensor) -> Tensor:
        output = self.model(input_ids=token, **{CACHE: self.cache})
        return output.logits  # type: ignore[no-any-return]


def recorded(prompt: Prompt, attention: str | None) -> Recording:
    """What the layers of a dense run are handed under an attention implementation; recorded once for a prompt."""
    if attention not in prompt.recordings:
        dense, adapter = Dense(prompt), prompt.adapter
        dense.attention = attention
        with dense.ready():
            runs = [dense.prefill, *[partial(dense.step, prompt.token)] * prompt.steps]
            found = Recording.of(adapter.text_model, adapter.decoder_layers, prompt.length, runs)
        prompt.recordings[attention] = found
    return prompt.recordings[attention]


class Pruned(Dense):
    """The same in a session."""

    session: Session

    def __init__(self, prompt: Prompt, items: tuple[Stage | Method, ...]) -> None:
        super().__init__(prompt)
        self.items = items

    @contextmanager
    def ready(self) -> Iterator[None]:
        with super().ready(), prune(self.model, *self.items) as self.session:
            yield

    def kept(self) -> dict[int, Tensor]:
        """Run the prompt once; numbers of the visual tokens that stay, by the layer before which the others go."""
        with self.ready():
            self.prefill()
        self.cache = None
        sites = ((record.site.partition(".")[2] or "0", record.kept[0]) for record in self.session.trace)
        return {int(layer): kept for layer, kept in sites}


class Front(Dense):
    """The model's own code before its first decoder layer."""

    @contextmanager
    def ready(self) -> Iterator[None]:
        with super().ready(), stopping(self.adapter.decoder_layers[0]) as self.front:
            if not hasattr(self, "filled"):  # a cache of a whole run: what is measured fills none
                super().prefill()
                self.filled = self.cache
            yield

    def prefill(self) -> Tensor:
        return self.front(partial(self.model, **self.prompt.sent, use_cache=True))

    def step(self, token: Tensor) -> Tensor:
        self.cache = self.filled
        return self.front(partial(super().step, token))


class Ideal(Variant):
    """The decoder's layers called directly, on what is known to be kept.

    Args:
        prompt: the prompt.
        kept: numbers of the visual tokens that stay, by the layer before which the others go.
    """

    def __init__(self, prompt: Prompt, kept: dict[int, Tensor]) -> None:
        super().__init__(prompt)
        self.recording = recorded(prompt, self.attention)
        self.layers, self.head = self.adapter.decoder_layers, self.adapter.lm_head
        self.everything = columns = torch.arange(prompt.length, device=prompt.visual.device)
        self.places: dict[int, Tensor] = {}  # where the columns that stay are among those left before
        self.handed: list[Arguments] = list(self.recording.prompt)
        self.added: list[Tensor | None] = list(self.recording.added)
        self.tokens: list[list[Arguments]] = [list(step) for step in self.recording.steps]
        self.first = min(kept)
        once: dict[Any, Any] = {}
        for index in range(self.first, len(self.layers)):
            if index in kept:
                before, columns = columns, prompt.columns(kept[index])
                self.places[index] = torch.searchsorted(before, columns)
                self.cut(index, columns)
            for step, handed in enumerate(self.tokens):
                handed[index] = self.recording.cut_step(step, index, columns, once)

    def cut(self, stage: int, columns: Tensor) -> None:
        """Cut what the layers from `stage` on are handed to these columns of the prompt."""
        once: dict[Any, Any] = {}
        for index in range(stage, len(self.layers)):
            self.handed[index] = self.recording.cut_prompt(index, columns, once)
            added = self.recording.added[index]
            self.added[index] = added if added is None else added.index_select(1, columns)

    @contextmanager
    def ready(self) -> Iterator[None]:
        with super().ready(), stopping(self.layers[0]) as self.front:
            yield

    def prefill(self) -> Tensor:
        self.cache, self.taken = self.new_cache(), 0
        hidden = self.front(partial(self.model, **self.prompt.sent, use_cache=True))
        for index, layer in enumerate(self.layers):
            hidden = self.layer(index, layer, hidden)
        return self.logits(hidden)

    def new_cache(self) -> DynamicCache:
        """An empty cache, in which windows of layers that hold a part of the columns forget none of them."""
        cache = DynamicCache(config=self.adapter.text_model.config)
        for index in range(self.first, len(self.layers)):
            if type(cache.layers[index]) is DynamicSlidingWindowLayer:
                cache.layers[index] = DynamicLayer()
        return cache

    def layer(self, index: int, layer: Any, hidden: Tensor) -> Tensor:
        """Run one layer on what is left before it."""
        if index in self.places:
            hidden = hidden.index_select(1, self.places[index])
        hidden = self.handed[index].run(layer, hidden, self.cache)
        added = self.added[index]
        return hidden if added is None else hidden + added

    def step(self, token: Tensor) -> Tensor:
        hidden = self.front(partial(self.model, input_ids=token, **{CACHE: self.cache}))
        for layer, handed in zip(self.layers, self.tokens[self.taken], strict=True):
            hidden = handed.run(layer, hidden, self.cache)
        self.taken += 1
        return self.logits(hidden)

    def logits(self, hidden: Tensor) -> Tensor:
        """What the head makes of the last position, before any scaling; the norm reads all, as the model has it."""
        norm = self.recording.norm
        return self.head((hidden if norm is None else norm(hidden))[:, -1:])  # type: ignore[misc]


class Usual(Ideal):
    """Eager attention, the full map at the scoring layers, pruned by the last token's row.

    Takes `kept` for the number of tokens at each stage, and for the masks of the tokens that are decoded.
    """

    attention = "eager"

    def __init__(self, prompt: Prompt, kept: dict[int, Tensor]) -> None:
        super().__init__(prompt, kept)
        self.counts = {stage: len(numbers) for stage, numbers in kept.items()}
        self.scored_by = {stage: self._scoring_layer(stage) for stage in kept}
        self.scores: dict[int, Tensor] = {}

    def _scoring_layer(self, stage: int) -> int:
        """The last layer before a stage that sees all columns; if there is none, the last one."""
        wide = [layer for layer in range(stage) if self.adapter.sees_images(layer)]
        return wide[-1] if wide else stage - 1

    def prefill(self) -> Tensor:
        self.handed, self.added = list(self.recording.prompt), list(self.recording.added)
        self.columns = self.everything
        return super().prefill()

    def layer(self, index: int, layer: Any, hidden: Tensor) -> Tensor:
        if index in self.counts:
            self._choose(index)
        if index not in self.scored_by.values():
            return super().layer(index, layer, hidden)
        handle = self.adapter.attention(layer).register_forward_hook(partial(self._read, index))
        try:
            return super().layer(index, layer, hidden)
        finally:
            handle.remove()

    def _read(self, index: int, module: Any, args: Any, output: Any) -> None:
        """Take the last token's row from the map [batch, heads, queries, keys] of a layer."""
        row = output[1].mean(dim=1)[0, -1]
        self.scores[index] = row.new_zeros(self.prompt.length).scatter(0, self.columns, row)

    def _choose(self, stage: int) -> None:
        """Choose the tokens that stay, and cut what later layers are handed."""
        visual = self.prompt.visual[self.columns]
        scores = self.scores[self.scored_by[stage]][self.columns]
        best = scores.masked_fill(~visual, -1).topk(self.counts[stage]).indices
        stays = (~visual).scatter(0, best, True)
        self.places[stage] = stays.nonzero()[:, 0]
        self.columns = self.columns[self.places[stage]]
        self.cut(stage, self.columns)
