"""PaliGemma and PaliGemma 2."""

from prunekit.adapter import ModelAdapter

__all__ = ["PaliGemmaAdapter"]


class PaliGemmaAdapter(ModelAdapter):
    """SigLIP, one linear layer, and Gemma (1 or 2), in which all of the prompt sees all of it."""

    model_types = ("paligemma",)
    encoder = "vision_tower"
    connector = "multi_modal_projector"
