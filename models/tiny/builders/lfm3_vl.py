"""LFM3-VL: a packed encoder of convolutions and attention, merged 2 x 2, LFM3 (convolutions, windows, attention)."""

from __future__ import annotations

from typing import Any

from torch import nn

from prunekit.models.tiny.builders.common import InputMaker, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes
from prunekit.models.tiny.builders.qwen2_vl import images, placeholders
from prunekit.models.tiny.builders.qwen3_vl import timed_videos

KINDS = ("conv", "full_attention", "conv", "sliding_attention")


def lfm3_vl(patch_size: int = 2, window: int | None = None, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """Every second decoder layer is a convolution, the others see everything or `window` tokens (an image), in turn."""
    from transformers import Lfm3Config, Lfm3VlConfig, Lfm3VlForConditionalGeneration
    from transformers.models.lfm3_vl.configuration_lfm3_vl import Lfm3VlVisionConfig

    s = Sizes(**sizes)
    text = Lfm3Config(
        **decoder_sizes(s, head_dim=s.hidden // s.heads),
        layer_types=[KINDS[n % len(KINDS)] for n in range(s.layers)],
        sliding_window=window or s.side**2,
    )
    vision = Lfm3VlVisionConfig(
        **vision_sizes(s, num_key_value_heads=max(1, s.vision_heads // 2)), patch_size=patch_size
    )
    config = Lfm3VlConfig(vision_config=vision, text_config=text, projector_hidden_size=2 * s.hidden, **placeholders())
    patch = [3 * 2 * patch_size**2]
    model = random_model(Lfm3VlForConditionalGeneration, config, s)
    return model, InputMaker(s.vocab, images(s, patch), timed_videos(s, patch))
