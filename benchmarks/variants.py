"""Four ways to run the same prompt on the same weights, compared by `overhead.py`.

- `dense`: the model as it is.
- `pruned`: the model in a prunekit session.
- `ideal`: the decoder's own layers called one after the other, the later ones on the shortened sequence. The kept
  tokens are known beforehand and nothing is scored: what pruning would cost if deciding and acting were free.
- `usual`: what a fork does. Attention is eager in all layers, so that the scoring layer hands out its full map; the
  rest is that of `ideal`.

Nothing of prunekit is used by `ideal` and `usual`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from prunekit import Keep, Session, Stage, prune
from prunekit.models.tiny.builders import tiny_random
from prunekit.policies import CrossAttention

LAYER = 2  # pruned before this decoder layer, as FastV does


class Prompt:
    """A random LLaVA and one prompt of one image, whose features are computed beforehand.

    Attributes:
        features: visual tokens as the language model gets them, [visual, hidden].
        sent: what a caller sends, with the vision encoder's outputs in place of pixels.
    """

    def __init__(
        self, side: int, text: int, keep: int, device: str, dtype: torch.dtype, hidden: int, layers: int
    ) -> None:
        sizes = {"hidden": hidden, "layers": layers, "heads": hidden // 64, "key_heads": hidden // 64}
        sizes |= {"intermediate": 11 * hidden // 4, "vision_hidden": 64, "vision_layers": 2, "vocab": 1024}
        model, make_inputs = tiny_random("llava", seed=0, **sizes, image_size=4 * side, patch_size=4, std=0.02)
        self.model: Any = model.to(device=device, dtype=dtype)
        self.keep = keep
        inputs = {name: value.to(device) for name, value in make_inputs(text=(text,)).items()}
        with torch.inference_mode():
            encoded = self.model.get_image_features(pixel_values=inputs.pop("pixel_values").to(dtype))
            self.features = torch.cat(encoded.pooler_output)
        self.sent: dict[str, Any] = {**inputs, "mm_encoder_outputs": {"image": encoded}}
        self.ids: Tensor = inputs["input_ids"]
        self.visual: Tensor = self.ids == self.model.config.image_token_id

    @property
    def length(self) -> int:
        return self.ids.shape[1]


class Variant(ABC):
    """One way to run a prefill and then single tokens."""

    attention = "sdpa"

    def __init__(self, prompt: Prompt) -> None:
        self.prompt, self.model = prompt, prompt.model
        self.cache: Any = None
        self.seen = 0

    @contextmanager
    def ready(self) -> Iterator[None]:
        """What a caller does once for many prompts; not timed."""
        self.model.set_attn_implementation(self.attention)
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
        output = self.model(**self.prompt.sent, use_cache=True, logits_to_keep=1)
        self.cache, self.mask = output.past_key_values, self.prompt.sent["attention_mask"]
        return output.logits

    def step(self, token: Tensor) -> Tensor:
        self.mask = torch.cat([self.mask, self.mask.new_ones(1, 1)], dim=1)
        return self.model(input_ids=token, attention_mask=self.mask, past_key_values=self.cache).logits


class Pruned(Dense):
    """The same in a session."""

    session: Session

    @contextmanager
    def ready(self) -> Iterator[None]:
        stage = Stage(f"decoder.{LAYER}", CrossAttention("last"), Keep(tokens=self.prompt.keep))
        with super().ready(), prune(self.model, stage) as self.session:
            yield


class Ideal(Variant):
    """The decoder's layers called directly, on what is known to be kept."""

    kept: Tensor  # numbers of the kept visual tokens, [kept]

    def prefill(self) -> Tensor:
        text, ids = self.model.model.language_model, self.prompt.ids
        hidden = text.embed_tokens(ids).masked_scatter(self.prompt.visual[..., None], self.prompt.features)
        positions = torch.arange(self.prompt.length, device=ids.device)[None]
        rotary = text.rotary_emb(hidden, position_ids=positions)
        mask = self.mask(hidden)
        self.cache, self.seen = DynamicCache(config=text.config), self.prompt.length
        for index, layer in enumerate(text.layers):
            if index == LAYER:
                columns = self.columns()
                hidden, positions = hidden[:, columns], positions[:, columns]
                rotary = tuple(table[:, columns] for table in rotary)
                mask = self.mask(hidden)
            hidden = self.layer(index, layer, hidden, mask, positions, rotary)
        return self.model.lm_head(text.norm(hidden[:, -1:]))

    def step(self, token: Tensor) -> Tensor:
        text = self.model.model.language_model
        hidden = text.embed_tokens(token)
        positions = torch.full((1, 1), self.seen, device=token.device)
        rotary = text.rotary_emb(hidden, position_ids=positions)
        self.seen += 1
        for layer in text.layers:
            hidden = self.run(layer, hidden, None, positions, rotary)
        return self.model.lm_head(text.norm(hidden))

    def run(self, layer: Any, hidden: Tensor, mask: Tensor | None, positions: Tensor, rotary: Any) -> Tensor:
        return layer(
            hidden,
            attention_mask=mask,
            position_ids=positions,
            position_embeddings=rotary,
            past_key_values=self.cache,
            use_cache=True,
        )

    def layer(
        self, index: int, layer: Any, hidden: Tensor, mask: Tensor | None, positions: Tensor, rotary: Any
    ) -> Tensor:
        return self.run(layer, hidden, mask, positions, rotary)

    def mask(self, hidden: Tensor) -> Tensor | None:
        return None  # SDPA needs none for a single row without padding

    def columns(self) -> Tensor:
        """Columns that stay: all text and the kept visual tokens, ascending."""
        stays = ~self.prompt.visual[0]
        stays[self.prompt.visual[0].nonzero()[self.kept, 0]] = True
        return stays.nonzero()[:, 0]


class Usual(Ideal):
    """Eager attention, the full map at the scoring layer, pruned by the last token's row."""

    attention = "eager"

    def layer(
        self, index: int, layer: Any, hidden: Tensor, mask: Tensor | None, positions: Tensor, rotary: Any
    ) -> Tensor:
        if index != LAYER - 1:
            return self.run(layer, hidden, mask, positions, rotary)
        handle = layer.self_attn.register_forward_hook(self.read)
        try:
            return self.run(layer, hidden, mask, positions, rotary)
        finally:
            handle.remove()

    def read(self, module: Any, args: Any, output: Any) -> None:
        scores = output[1].mean(dim=1)[0, -1]  # [batch, heads, queries, keys] -> [keys]
        self.kept = scores[self.prompt.visual[0]].topk(self.prompt.keep).indices

    def mask(self, hidden: Tensor) -> Tensor:
        length, lowest = hidden.shape[1], torch.finfo(hidden.dtype).min
        return torch.full((length, length), lowest, dtype=hidden.dtype, device=hidden.device).triu(1)[None, None]


def variants(prompt: Prompt) -> dict[str, Variant]:
    """All four, after a run of `pruned` that tells `ideal` what is kept."""
    made: dict[str, Variant] = {}
    pruned, ideal = Pruned(prompt), Ideal(prompt)
    with pruned.ready(), torch.inference_mode():
        pruned.prefill()
    ideal.kept = pruned.session.trace[-1].kept[0]
    made |= {"dense": Dense(prompt), "pruned": pruned, "ideal": ideal, "usual": Usual(prompt)}
    return made
