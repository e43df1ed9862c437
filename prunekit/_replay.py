"""Generation without a KV cache runs the whole prompt again for every token; decisions stay those of the prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from prunekit.selection import Selection

__all__ = ["Replay"]

Decision = tuple[Selection, tuple[int, ...]]


class Replay:
    """Remembers the decisions of the last prompt and repeats them when one token more is sent."""

    def __init__(self) -> None:
        self.ids: Tensor | None = None
        self.features: Tensor | None = None
        self.prompt = 0
        self.decisions: dict[str, Decision] = {}

    def forget(self) -> None:
        """The next call is a prompt of its own."""
        self.ids = self.features = None
        self.decisions = {}

    def begins(self, ids: Tensor | None, features: Tensor) -> bool:
        """Note a call without a cache; True if it is the noted one with one token more, on the same images.

        Args:
            ids: token ids, [batch, length], or None where embeddings were sent.
            features: the visual tokens' embeddings, [batch, visual, dim].
        """
        before, seen = self.ids, self.features
        self.ids, self.features = ids, features
        if (
            before is not None
            and ids is not None
            and seen is not None
            and ids.shape == (before.shape[0], before.shape[1] + 1)
        ):
            prompt = slice(None, self.prompt)
            if torch.equal(ids[:, prompt], before[:, prompt]) and torch.equal(features, seen):
                return True
        self.prompt = 0 if ids is None else ids.shape[1]
        self.decisions = {}
        return False
