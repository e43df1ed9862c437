"""Tiny random models of full architectural shape, for tests and demonstrations: one builder a family."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MakeInputs", "tiny_random"]

MakeInputs = Callable[..., dict[str, Tensor]]


def tiny_random(family: str = "llava", seed: int = 0, **sizes: Any) -> tuple[nn.Module, MakeInputs]:
    """A random model (float32, evaluation mode) and a function that makes inputs for it.

    Args:
        family: `llava`.
        seed: of the weights.
        sizes: see the family's builder below.

    Returns:
        The model and `make_inputs(batch=1, images=1, text=(6,), seed=0)`, where `images` and `text` are numbers for
        all rows or one per row; shorter rows are padded at the left.
    """
    builders = {"llava": _llava}
    if family not in builders:
        raise KeyError(f"{family!r}: allowed are {', '.join(builders)}")
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        return builders[family](**sizes)
    finally:
        torch.random.set_rng_state(state)


def _llava(
    hidden: int = 32,
    layers: int = 4,
    heads: int = 4,
    key_heads: int = 2,
    intermediate: int = 64,
    vocab: int = 64,
    vision_hidden: int = 32,
    vision_layers: int = 4,
    image_size: int = 24,
    patch_size: int = 4,
    std: float = 0.2,
    attn_implementation: str = "sdpa",
) -> tuple[nn.Module, MakeInputs]:
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

    vision = CLIPVisionConfig(
        hidden_size=vision_hidden,
        intermediate_size=2 * vision_hidden,
        num_hidden_layers=vision_layers,
        num_attention_heads=4,
        image_size=image_size,
        patch_size=patch_size,
        projection_dim=vision_hidden,
    )
    text = LlamaConfig(
        vocab_size=vocab,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=key_heads,
        max_position_embeddings=8192,
        initializer_range=std,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    patches = (image_size // patch_size) ** 2
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=3,
        image_seq_length=patches,
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
    )
    config._attn_implementation = attn_implementation
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():  # CLIP's own scale leaves its attention all but uniform
            if parameter.ndim == 2 and "norm" not in name:
                parameter.normal_(0, std)

    def make_inputs(
        batch: int = 1, images: int | Sequence[int] = 1, text: int | Sequence[int] = 6, seed: int = 0
    ) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        images_of = [images] * batch if isinstance(images, int) else list(images)
        text_of = [text] * batch if isinstance(text, int) else list(text)
        text_of = text_of * batch if len(text_of) == 1 else text_of
        rows = []
        for count, length in zip(images_of, text_of, strict=True):
            words = torch.randint(4, vocab, (length + count + 1,), generator=generator).tolist()
            row = [1]
            for word in words[:count]:
                row += [word] + [3] * patches
            rows.append(row + words[count:])
        longest = max(map(len, rows))
        inputs = {
            "input_ids": torch.tensor([[0] * (longest - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows]),
        }
        if sum(images_of):
            inputs["pixel_values"] = torch.randn(sum(images_of), 3, image_size, image_size, generator=generator)
        return inputs

    return model, make_inputs
