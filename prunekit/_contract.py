"""What a model must have to be pruned, and the refusals of those that lack it."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.errors import UnsupportedModelError

__all__ = ["check_model", "refusal"]

BOTH = "keep a recurrent state beside the keys of their tokens; there is no pruned KV cache for both"
INDEXED = "choose the keys they look at by an index, which cannot be cut to the tokens that are left"
BLOCKS = "attend to blocks of neighbouring tokens, which they choose by all tokens of a block, dropped ones included"
KINDS = {
    "hybrid": BOTH,
    "hybrid_sliding": BOTH,
    "compressed_sparse_attention": INDEXED,
    "heavily_compressed_attention": INDEXED,
    "minimax_m3_sparse": BLOCKS,
}
"""Kinds of decoder layers that cannot hold fewer tokens, and why."""


def check_model(model: nn.Module, has_placeholders: bool) -> None:
    """Refuse a model that cannot be pruned.

    Raises:
        UnsupportedModelError: the message says what it lacks.
    """
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    kinds = set(getattr(text, "layer_types", None) or ())
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    reasons = {
        "it is compiled, and a compiled model does not run hooks that are added later; give the model as it was before"
        " torch.compile": compiled or hasattr(model, "_orig_mod"),
        "it is an encoder-decoder model, whose visual tokens are no columns of a decoder": getattr(
            config, "is_encoder_decoder", False
        ),
        "its images go into a whole vision-language model inside it (vlm_config), whose states or KV cache another part"
        " of it reads": getattr(config, "vlm_config", None) is not None,
        "its configuration names no placeholder for images, such as image_token_id, so that it has no visual tokens"
        " among its text": not has_placeholders,
        "its decoder looks at images by cross-attention; they are no tokens in its sequence": bool(
            getattr(text, "cross_attention_layers", None)
        ),
        "its decoder layers work on several streams of states of each token": any(
            (getattr(text, name, None) or 1) > 1 for name in ("altup_num_inputs", "hc_mult", "hc_count")
        ),
        "some of its decoder layers look only at tokens that an earlier one picked, which may be dropped in between": (
            "shared" in (getattr(text, "indexer_types", None) or ())
        ),
    }
    reasons |= {f"its decoder has layers of the kind {kind}, which {why}": kind in kinds for kind, why in KINDS.items()}
    for why, holds in reasons.items():
        if holds:
            raise refusal(model, why)


def refusal(model: nn.Module, why: str) -> UnsupportedModelError:
    """The error that names a model and what it lacks."""
    name = getattr(getattr(model, "config", None), "model_type", None)
    return UnsupportedModelError(f"{type(model).__name__} (model_type {name!r}) cannot be pruned: {why}.")
