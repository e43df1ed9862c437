"""Phi-4 multimodal: SigLIP over crops, 2 x 2 pooling and a separator per row, one model for embeddings and layers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, nn

from prunekit.models.tiny.builders.common import EOS, IMAGE, SPECIAL, InputMaker, Media, Sizes, random_model
from prunekit.models.tiny.builders.decoders import decoder_sizes, vision_sizes

AUDIO = SPECIAL[2]


def phi4_multimodal(patch_size: int = 4, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """An image is a row-wise grid of crops of side^2 tokens and a small copy of the whole.

    The default image has one crop, images 1 and 2 of a prompt have two, the last of them half empty.
    """
    from transformers import Phi4MultimodalConfig, Phi4MultimodalForCausalLM
    from transformers.models.phi4_multimodal.configuration_phi4_multimodal import (
        Phi4MultimodalAudioConfig,
        Phi4MultimodalVisionConfig,
    )

    s = Sizes(**sizes)
    grid = 2 * s.side
    edge = grid * patch_size
    config = Phi4MultimodalConfig(
        **decoder_sizes(s, eos_token_id=[EOS]),
        vision_config=Phi4MultimodalVisionConfig(
            **vision_sizes(s), image_size=edge, crop_size=edge, patch_size=patch_size, image_token_id=IMAGE
        ),
        audio_config=Phi4MultimodalAudioConfig(
            hidden_size=16,
            intermediate_size=16,
            num_blocks=2,
            num_attention_heads=2,
            ext_pw_out_channel=16,
            depthwise_separable_out_channel=16,
            input_size=16,
            bias_max_distance=16,
            nemo_conv_channels=16,
            audio_token_id=AUDIO,
        ),
    )
    model = random_model(Phi4MultimodalForCausalLM, config, s)
    base: Any = model.get_submodule("model.embed_tokens_extend.image_embed")
    with torch.no_grad():
        for name in ("global_img_feature_extensor", "sub_img_feature_extensor"):
            base.get_parameter(name).normal_(0, s.std)

    def image(generator: Generator, number: int) -> Media:
        rows, columns = [(1, 1), (1, 2), (2, 1)][number % 3]
        pixels, mask = torch.zeros(1, 3, 3, edge, edge), torch.ones(1, 3, grid, grid)
        mask[:, rows * columns + 1 :, -1, -1] = 0  # the encoder would be causal if no patch at all were padding
        pixels[:, : rows * columns + 1] = torch.randn(1, rows * columns + 1, 3, edge, edge, generator=generator)
        height, width = rows * s.side, columns * s.side
        if columns == 2:
            mask[:, 2, :, s.side // 2 * 2 :] = 0
            width -= s.side - s.side // 2
        if rows == 2:
            mask[:, 2, s.side // 2 * 2 :] = 0
            height -= s.side - s.side // 2
        count = height * (width + 1) + 1 + s.side * (s.side + 1)
        tensors = {
            "image_pixel_values": pixels,
            "image_sizes": torch.tensor([[rows * edge, columns * edge]]),
            "image_attention_mask": mask,
        }
        return Media([IMAGE] * count, tensors)

    return model, InputMaker(s.vocab, image)
