"""ViP-LLaVA: LLaVA whose projector reads several encoder layers."""

from prunekit.adapter import ModelAdapter

__all__ = ["VipLlavaAdapter"]


class VipLlavaAdapter(ModelAdapter):
    """CLIP, of which five layers are projected side by side, and Llama.

    Attention is read from the deepest of these layers unless a policy names another.
    """

    model_types = ("vipllava",)
    encoder = "vision_tower"
    connector = "multi_modal_projector"
    prefix_tokens = 1
    has_cls = True
