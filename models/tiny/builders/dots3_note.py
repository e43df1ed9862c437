"""dots3.note: a packed ViT with experts, 2 x 2 merging, compressed keys and values, layers with indexes or windows."""

from __future__ import annotations

from typing import Any

from torch import Generator, nn

from prunekit.models.tiny.builders.common import IMAGE, SPECIAL, VIDEO, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes
from prunekit.models.tiny.builders.qwen2_vl import END, START, images, pixels, video_shape

AUDIO = SPECIAL[2]


def dots3_note(
    patch_size: int = 2, window: int | None = None, indexed: int | None = None, **sizes: Any
) -> tuple[nn.Module, InputMaker]:
    """The first two layers, and every fourth counted from the last, look at the `indexed` tokens that they pick.

    The others see `window` tokens. By default, `indexed` are as many as an image has, and windows are one and a half
    images. The first layer is dense, all others have experts; the encoder has more of them from layer to layer.
    """
    from transformers import Dots3NoteConfig, Dots3NoteForConditionalGeneration
    from transformers.models.dots3_note.configuration_dots3_note import (
        Dots3NoteAudioConfig,
        Dots3NoteTextConfig,
        Dots3NoteVisionConfig,
    )

    s = Sizes(**sizes)
    config = Dots3NoteConfig(
        text_config=Dots3NoteTextConfig(**language(s, window, indexed)),
        vision_config=Dots3NoteVisionConfig(
            **vision_sizes(s, pyramid_num_routed=[-1, *range(2, 2 * s.vision_layers, 2)]),
            patch_size=patch_size,
            moe_intermediate_size=s.vision_hidden,
            adapter_in_dim=s.vision_hidden,
            adapter_out_dim=s.hidden,
        ),
        audio_config=Dots3NoteAudioConfig(
            **vision_sizes(s, num_hidden_layers=1),
            feature_size=8,
            downsample_hidden_size=8,
            adapter_input_size=s.vision_hidden,
            adapter_out_dim=s.hidden,
        ),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=AUDIO,
    )
    patch = [3 * patch_size**2]

    def video(generator: Generator, number: int) -> Media:
        shape = video_shape(s, number)
        tensors = pixels(generator, shape, patch, kind="video")
        frames, height, width = shape
        return Media([START, *[VIDEO] * (frames * height * width), END], tensors)

    return random_model(Dots3NoteForConditionalGeneration, config, s), InputMaker(s.vocab, images(s, patch), video)


def language(s: Sizes, window: int | None, indexed: int | None) -> dict[str, Any]:
    """Sizes of the decoder; layers with windows have fewer heads, and keys and values compressed less."""
    width = s.hidden // s.heads
    whole = {
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.heads,
        "q_lora_rank": s.hidden // 2,
        "kv_lora_rank": s.hidden // 4,
        "head_dim": 2 * width,
        "qk_nope_head_dim": width,
        "qk_rope_head_dim": width // 2,
        "v_head_dim": width,
    }
    narrow = {
        **whole,
        "num_attention_heads": s.heads // 2,
        "num_key_value_heads": s.heads // 2,
        "kv_lora_rank": s.hidden // 2,
        "qk_nope_head_dim": 2 * width - width // 2,
    }
    picks = [layer < 2 or (s.layers - 1 - layer) % 4 == 0 for layer in range(s.layers)]
    return decoder_sizes(
        s,
        **whole,
        **{f"swa_{name}": size for name, size in narrow.items()},
        layer_types=["indexed_attention" if pick else "sliding_attention" for pick in picks],
        sliding_window=window or 3 * s.side**2 // 2,
        index_topk=indexed or s.side**2,
        index_head_dim=2 * width,
        index_n_heads=32,  # with few, ReLU leaves several tokens a score of exactly 0, and chance picks among them
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=s.intermediate // 2,
        shared_experts_intermediate_size=s.intermediate // 2,
    )
