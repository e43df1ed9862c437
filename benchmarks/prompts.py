"""Random models of every family at a benchmark's sizes, each with one prompt, and the plans they are pruned by."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from recording import Recording
from torch import Tensor, nn

from prunekit import Keep, Method, Stage
from prunekit.adapter import adapter_for
from prunekit.errors import UnsupportedModelError
from prunekit.models.tiny.builders import BUILDERS, tiny_random
from prunekit.models.tiny.builders.common import IMAGE
from prunekit.policies import STAR, CrossAttention, SelfAttention

__all__ = ["PLANS", "Prompt", "even_out", "families", "plan", "sizes_of", "why_not"]

TOKEN = 17
"""Id of the word that is decoded again and again."""

WINDOW = 512
WINDOWS = {"aya_vision", "cohere2_vision", "gemma3", "gemma4", "gemma4_moe", "gemma4_unified", "lfm3_vl"}
WINDOWS |= {"muse_glimmer", "muse_spark", "paligemma", "step3p7"}
"""Length of sliding windows at 24 x 24 visual tokens, and the families that have some."""

MANY = {"llava_next_video", "llava_onevision", "molmo2", "phi4_multimodal"}
"""Families whose images have about twice as many visual tokens as others of the same side."""

EXPERTS = {"aria", "gemma4_moe", "kimi_k25", "llama4", "mistral_large4", "qwen3_5_moe", "step3p7"}
"""Families whose experts would make a prefill several times as long as others."""

NO_CACHE = {"blip_2", "granite4_vision", "instructblip"}
"""Families whose forward hands out no KV cache."""


def families() -> tuple[str, ...]:
    """Families that can be pruned and measured, in alphabetical order."""
    return tuple(name for name in sorted(BUILDERS) if why_not(name) is None)


def why_not(name: str) -> str | None:
    """Why a family cannot be measured; None if it can."""
    if name not in BUILDERS:
        return f"no such family; there are {', '.join(BUILDERS)}"
    if name in NO_CACHE:
        return "its forward hands out no KV cache"
    try:
        adapter = adapter_for(tiny_random(name)[0])
    except UnsupportedModelError as error:
        return str(error)
    return None if adapter.lm_head is not None else "its model does not name its output head"


def sizes_of(family: str, side: int, hidden: int, layers: int) -> dict[str, Any]:
    """What a family's builder is given for about `side` x `side` visual tokens and a tiny vision encoder."""
    heads = hidden // 64 if hidden >= 256 else 4
    sizes: dict[str, Any] = {"hidden": hidden, "layers": layers, "heads": heads, "vocab": 1024}
    sizes |= {"key_heads": heads // 4 if heads % 4 == 0 and heads > 4 else heads // 2, "vision_hidden": 32}
    sizes |= {"intermediate": hidden * (2 if family in EXPERTS else 4) // 3 // 8 * 16, "vision_layers": 3}
    if family == "llava":
        return sizes | {"image_size": 4 * side, "patch_size": 4, "key_heads": heads}
    sizes["side"] = side * 2 // 3 if family in MANY else side
    if family in WINDOWS:
        sizes["window"] = WINDOW * side**2 // 24**2
    return sizes | {"llama4": {"chunk": 8192}, "phi4_multimodal": {"vision_layers": 1}}.get(family, {})


def even_out(model: nn.Module) -> None:
    """Scale all matrices so that they hand on what they are given at its size: signals neither die out nor explode."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and weight.numel() > 1 and "norm" not in name:
                inputs = weight.shape[-1] if weight.ndim == 3 else weight[0].numel()
                weight.mul_(inputs**-0.5 / weight.std().clamp(min=1e-6))


PLANS = ("input", "decoder", "star", "pyramid")
"""Names of the plans that every family is measured with."""


def plan(name: str, keep: int, visual: int, depth: int) -> tuple[Stage | Method, ...]:
    """Stages that leave `keep` of `visual` tokens; a pyramid keeps half of what it is given, four times."""
    if name == "input":
        return (Stage("input", SelfAttention("embedding"), Keep(tokens=keep)),)
    if name == "decoder":
        return (Stage("decoder.2", CrossAttention("last"), Keep(tokens=keep)),)
    if name == "star":
        return (STAR(keep=keep, visual_queries="embedding"),)
    layers = [round(depth * (n + 1) / 5) for n in range(4)]
    return tuple(
        Stage(f"decoder.{layer}", CrossAttention("last"), Keep(tokens=visual // 2 ** (n + 1)))
        for n, layer in enumerate(layers)
    )


class Prompt:
    """A random model of a family and one prompt, whose images are encoded beforehand where the family allows it.

    Attributes:
        model, adapter: the model, and the names of its parts.
        attention: the implementation that its language model was built with.
        sent: what a caller sends, with the vision encoder's outputs in place of pixels.
        visual: which columns are visual tokens, [length].
        token: what is decoded, again and again.
        steps: how many of them can be decoded after the prompt.
    """

    def __init__(
        self,
        family: str,
        sizes: dict[str, Any],
        *,
        text: int = 64,
        images: int = 1,
        steps: int = 1,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        model, make_inputs = tiny_random(family, seed=0, **sizes)
        even_out(model)
        self.model: Any = model.to(device)
        for weight in model.parameters():  # tables of positions stay as they are: some are complex
            weight.data = weight.data.to(dtype)
        self.adapter = adapter_for(model)
        self.attention: str = self.adapter.text_model.config._attn_implementation  # type: ignore[union-attr]
        inputs: dict[str, Any] = {}
        for name, value in make_inputs(images=images, text=text).items():
            inputs[name] = value.to(device, dtype) if value.is_floating_point() else value.to(device)
        self.visual: Tensor = inputs["input_ids"][0] == IMAGE
        self.sent = self._encoded(inputs)
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            self.sent["logits_to_keep"] = 1
        self.steps = steps
        self.token = torch.full((1, 1), TOKEN, device=device)
        self.recordings: dict[str | None, Recording] = {}  # by attention implementation

    def _encoded(self, inputs: dict[str, Any]) -> dict[str, Any]:
        core: Any = self.adapter.core
        encode = getattr(core, "get_image_features", None)
        if encode is None or "mm_encoder_outputs" not in inspect.signature(core.forward).parameters:
            return inputs
        wanted = set(inspect.signature(encode).parameters) - {"input_ids"}
        with torch.inference_mode():
            features = encode(**{name: value for name, value in inputs.items() if name in wanted})
        pixels = ("pixel_values", "image_patches")
        others = {name: value for name, value in inputs.items() if not name.startswith(pixels)}
        return {**others, "mm_encoder_outputs": {"image": features}}

    @property
    def length(self) -> int:
        return self.visual.shape[0]

    @property
    def images(self) -> int:
        """Visual tokens."""
        return int(self.visual.sum())

    def columns(self, kept: Tensor | Sequence[int]) -> Tensor:
        """Columns of all text and of the visual tokens with these numbers, ascending."""
        stays = ~self.visual
        stays[self.visual.nonzero()[kept, 0]] = True
        return stays.nonzero()[:, 0]
