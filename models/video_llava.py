"""Video-LLaVA: one encoder for images, another one for video frames."""

from __future__ import annotations

from prunekit.adapter import ModelAdapter

__all__ = ["VideoLlavaAdapter"]


class VideoLlavaAdapter(ModelAdapter):
    """LanguageBind's CLIPs and Llama. Attention can be read of images; a video's encoder keeps [CLS] of every frame
    among the visual tokens, and its inside is out of reach.
    """

    model_types = ("video_llava",)
    encoder = "image_tower"
    connector = "multi_modal_projector"
    prefix_tokens = 1
    has_cls = True
