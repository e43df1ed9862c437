"""What text configurations of most families have in common."""

from __future__ import annotations

from typing import Any

from prunekit.models.tiny.builders.common import BOS, EOS, PAD, Sizes

__all__ = ["BOI", "EOI", "decoder_sizes", "vision_sizes"]

BOI, EOI = 5, 6
"""Start and end of an image."""


def decoder_sizes(s: Sizes, **others: Any) -> dict[str, Any]:
    """Arguments of a text configuration; `others` replace or add some."""
    return {
        "vocab_size": s.vocab,
        "hidden_size": s.hidden,
        "intermediate_size": s.intermediate,
        "num_hidden_layers": s.layers,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.key_heads,
        "max_position_embeddings": 8192,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        **others,
    }


def vision_sizes(s: Sizes, **others: Any) -> dict[str, Any]:
    """Arguments of a vision configuration; `others` replace or add some."""
    return {
        "hidden_size": s.vision_hidden,
        "intermediate_size": 2 * s.vision_hidden,
        "num_hidden_layers": s.vision_layers,
        "num_attention_heads": s.vision_heads,
        **others,
    }
