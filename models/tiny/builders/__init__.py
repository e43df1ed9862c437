"""Tiny random models of full architectural shape, for tests, benchmarks and demonstrations: one builder a family."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import nn

from prunekit.models.tiny.builders.common import InputMaker, TinyInputs

__all__ = ["BUILDERS", "InputMaker", "TinyInputs", "tiny_random"]

BUILDERS = {
    "aria": "aria",
    "aya_vision": "aya_vision",
    "blip_2": "blip_2",
    "chameleon": "chameleon",
    "cohere2_vision": "cohere2_vision",
    "cohere_compass": "cohere_compass",
    "cosmos3_edge": "cosmos3_edge",
    "cosmos3_omni": "cosmos3_omni",
    "deepseek_ocr2": "deepseek_ocr2",
    "deepseek_vl": "deepseek_vl",
    "deepseek_vl_hybrid": "deepseek_vl_hybrid",
    "diffusion_gemma": "diffusion_gemma",
    "dots3_note": "dots3_note",
    "emu3": "emu3",
    "ernie4_5_vl_moe": "ernie4_5_vl_moe",
    "exaone4_5": "exaone4_5",
    "fast_vlm": "fast_vlm",
    "florence2": "florence2",
    "fuyu": "fuyu",
    "gemma3": "gemma3",
    "gemma3n": "gemma3n",
    "gemma4": "gemma4",
    "gemma4_moe": "gemma4",
    "gemma4_unified": "gemma4_unified",
    "glm46v": "glm46v",
    "glm4v": "glm4v",
    "glm4v_moe": "glm4v",
    "glm5_next": "glm5_next",
    "glm_ocr": "glm_ocr",
    "got_ocr2": "got_ocr2",
    "granite4_vision": "granite4_vision",
    "granite_docling": "granite_docling",
    "hunyuan_vl": "hunyuan_vl",
    "hyperclovax_vision_v2": "hyperclovax_vision_v2",
    "idefics2": "idefics2",
    "idefics3": "idefics3",
    "inkling": "inkling",
    "inkling2": "inkling2",
    "instructblip": "blip_2",
    "internvl": "internvl",
    "janus": "janus",
    "kimi_k25": "kimi_k25",
    "kosmos2_5": "kosmos2_5",
    "lfm2_vl": "lfm2_vl",
    "lfm3_vl": "lfm3_vl",
    "lighton_ocr": "lighton_ocr",
    "llama4": "llama4",
    "llava": "llava",
    "llava_next": "llava_next",
    "llava_next_video": "llava_next_video",
    "llava_onevision": "llava_onevision",
    "minicpm_ocr": "minicpm_ocr",
    "minicpmv4_6": "minicpmv4_6",
    "minicpmv4_7": "minicpmv4_7",
    "minimax_m3_vl": "minimax_m3_vl",
    "mistral3": "mistral3",
    "mistral_large4": "mistral_large4",
    "mllama": "mllama",
    "molmo2": "molmo2",
    "muse_glimmer": "muse_glimmer",
    "muse_spark": "muse_spark",
    "nemotron_h_omni": "nemotron_h_omni",
    "ovis2": "ovis2",
    "paddleocr_vl": "paddleocr_vl",
    "paligemma": "paligemma",
    "perception_lm": "perception_lm",
    "phi4_multimodal": "phi4_multimodal",
    "pi0": "pi0",
    "qianfan_ocr": "qianfan_ocr",
    "qwen2_5_omni": "qwen2_5_omni",
    "qwen2_5_vl": "qwen2_5_vl",
    "qwen2_vl": "qwen2_vl",
    "qwen3_5": "qwen3_5",
    "qwen3_5_moe": "qwen3_5",
    "qwen3_omni_moe": "qwen3_omni_moe",
    "qwen3_vl": "qwen3_vl",
    "qwen3_vl_moe": "qwen3_vl",
    "qwen4_exp": "qwen4_exp",
    "smolvlm": "smolvlm",
    "step3p7": "step3p7",
    "t5gemma2": "t5gemma2",
    "unlimited_ocr": "unlimited_ocr",
    "video_llama_3": "video_llama_3",
    "video_llava": "video_llava",
    "vipllava": "vipllava",
}
"""Families and the modules that build them; each has a function of the family's name."""


def tiny_random(family: str = "llava", seed: int = 0, **sizes: Any) -> tuple[nn.Module, InputMaker]:
    """A random model (float32, evaluation mode) and a function that makes inputs for it.

    Args:
        family: one of `BUILDERS`.
        seed: of the weights.
        sizes: fields of `Sizes`, and what the family's builder takes besides.

    Returns:
        The model and `make_inputs(batch=1, images=1, text=6, seed=0, videos=0)`, where `images`, `text` and `videos`
        are numbers for all rows or one per row; shorter rows are padded at the left.
    """
    if family not in BUILDERS:
        raise KeyError(f"{family!r}: allowed are {', '.join(BUILDERS)}")
    build: Callable[..., tuple[nn.Module, InputMaker]] = getattr(
        import_module(f"prunekit.models.tiny.builders.{BUILDERS[family]}"), family
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    try:
        return build(**sizes)
    finally:
        torch.random.set_rng_state(state)
