"""What a model must have to be pruned, and the refusals of those that lack it."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.errors import UnsupportedModelError

__all__ = ["check_model", "refusal"]

RECURRENT = {"conv", "linear_attention", "mamba", "recurrent", "hybrid", "hybrid_sliding", "moe_mamba", "hybrid_mamba"}


def check_model(model: nn.Module, has_placeholders: bool) -> None:
    """Refuse a model that cannot be pruned.

    Raises:
        UnsupportedModelError: the message says what it lacks.
    """
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    kinds = RECURRENT & set(getattr(text, "layer_types", None) or ())
    compiled = any(module._compiled_call_impl is not None for module in model.modules())
    reasons = {
        "it is compiled, and a compiled model does not run hooks that are added later; give the model as it was before"
        " torch.compile": compiled or hasattr(model, "_orig_mod"),
        "it is an encoder-decoder model, whose visual tokens are no columns of a decoder": getattr(
            config, "is_encoder_decoder", False
        ),
        "its configuration names no placeholder for images, such as image_token_id, so that it has no visual tokens"
        " among its text": not has_placeholders,
        "its decoder looks at images by cross-attention; they are no tokens in its sequence": bool(
            getattr(text, "cross_attention_layers", None)
        ),
        f"its decoder has layers of the kinds {', '.join(sorted(kinds))}, whose state mixes neighbouring tokens, so"
        " that dropping a token is not the same as not looking at it": bool(kinds),
        "its last decoder layers use the keys and values of earlier ones, and so cannot hold fewer tokens": bool(
            getattr(text, "num_kv_shared_layers", 0)
        ),
    }
    for why, holds in reasons.items():
        if holds:
            raise refusal(model, why)


def refusal(model: nn.Module, why: str) -> UnsupportedModelError:
    """The error that names a model and what it lacks."""
    name = getattr(getattr(model, "config", None), "model_type", None)
    return UnsupportedModelError(f"{type(model).__name__} (model_type {name!r}) cannot be pruned: {why}.")
