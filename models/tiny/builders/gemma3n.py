"""Gemma 3n: a convolutional encoder, a decoder with AltUp (several streams), vectors per layer, shared keys and values.

The encoder, MobileNetV5, comes from timm, which this project does without: a small convolution stands in for it.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import BOI, EOI, decoder_sizes


def gemma3n(
    patch_size: int = 4, window: int | None = None, streams: int = 3, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """Every second layer has a sliding window of `window` tokens (one and a half images), the others see everything.

    The last layers use keys and values of earlier ones; the last eight ids are those of hard image and sound tokens.
    """
    from unittest.mock import patch

    from transformers import AutoModel, Gemma3nConfig, Gemma3nForConditionalGeneration, Gemma3nTextConfig
    from transformers.models.gemma3n.configuration_gemma3n import Gemma3nAudioConfig, Gemma3nVisionConfig

    s = Sizes(**sizes)
    kinds = ["full_attention" if layer % 2 else "sliding_attention" for layer in range(s.layers)]
    text = Gemma3nTextConfig(
        **decoder_sizes(s, head_dim=s.hidden // s.heads),
        sliding_window=window or 3 * s.side**2 // 2,
        layer_types=kinds,
        vocab_size_per_layer_input=s.vocab - 8,
        hidden_size_per_layer_input=8,
        altup_num_inputs=streams,
        num_kv_shared_layers=max(0, min(s.layers // 2, s.layers - 2)),
        laurel_rank=4,
        activation_sparsity_pattern=[0.5 if layer == 0 else 0.0 for layer in range(s.layers)],
        tie_word_embeddings=False,
    )
    audio = Gemma3nAudioConfig(
        hidden_size=16,
        input_feat_size=16,
        conf_num_attention_heads=2,
        conf_num_hidden_layers=1,
        sscp_conv_channel_size=(8, 4),
        vocab_size=4,
        vocab_offset=s.vocab - 4,
    )
    config = Gemma3nConfig(
        text_config=text,
        vision_config=Gemma3nVisionConfig(hidden_size=s.vision_hidden, vocab_size=4, vocab_offset=s.vocab - 8),
        audio_config=audio,
        vision_soft_tokens_per_image=s.side**2,
        image_token_id=IMAGE,
        boi_token_id=BOI,
        eoi_token_id=EOI,
        tie_word_embeddings=False,
    )
    original: Any = AutoModel.from_config

    def from_config(part: Any, *arguments: Any, **options: Any) -> Any:
        if isinstance(part, Gemma3nVisionConfig):
            return Convolutions(s.vision_hidden, patch_size)
        return original(part, *arguments, **options)

    with patch.object(AutoModel, "from_config", from_config):
        model = random_model(Gemma3nForConditionalGeneration, config, s)
    edge = s.side * patch_size

    def image(generator: Generator, number: int) -> Media:
        pixels = torch.randn(1, 3, edge, edge, generator=generator)
        return Media([BOI, *[IMAGE] * s.side**2, EOI], {"pixel_values": pixels})

    return model, InputMaker(s.vocab, image)


class Convolutions(nn.Module):
    """Stands in for MobileNetV5: [images, 3, height, width] to [images, channels, rows, columns]."""

    def __init__(self, channels: int, patch_size: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, channels, patch_size, patch_size)
        self.block = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, pixel_values: torch.Tensor, **options: Any) -> Any:
        """Features in `last_hidden_state`."""
        hidden = self.patches(pixel_values)
        return SimpleNamespace(last_hidden_state=hidden + self.block(nn.functional.gelu(hidden)))
