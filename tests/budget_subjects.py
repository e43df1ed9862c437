"""What the tests of budgets are tried on: LLaVA-1.5-7B from its shapes, and every method and policy on it."""

from __future__ import annotations

from functools import cache
from typing import Any

from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

from prunekit import Keep, Method, Stage, policies
from prunekit.budget import CostModel

NAMES = [name for name in policies.__all__ if isinstance(getattr(policies, name), type)]

SCORING = policies.Norm()
PARTS: dict[str, dict[str, Any]] = {
    "Mix": {"policies": [SCORING, policies.Random()]},
    "Union": {"policies": [SCORING, policies.Random()]},
    "Invert": {"policy": SCORING},
    "PerImage": {"policy": SCORING},
    "Protect": {"policy": SCORING},
    "SpatialQuota": {"policy": SCORING},
}


@cache
def llava() -> CostModel:
    """LLaVA-1.5-7B, from its shapes."""
    vision = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    return CostModel.of(LlavaConfig(vision_config=vision, text_config=LlamaConfig()))


def subject_of(name: str) -> Method | Stage:
    """A method as it works on LLaVA-1.5-7B, or a policy in a stage of its own, at a site where it has a meaning."""
    cls = getattr(policies, name)
    if name == "Sequential":
        first = Stage("input", policies.Random(), Keep(ratio=0.5))
        return policies.Sequential([first, policies.FastV(keep=0.25, layer=16)])
    if issubclass(cls, Method):
        return cls.example(llava().shape)  # type: ignore[no-any-return]
    policy = cls(**PARTS.get(name, {}))
    site = next(kind for kind in ("input", "decoder", "connector", "vision") if kind in policy.sites)
    return Stage({"decoder": "decoder.2", "vision": "vision.21"}.get(site, site), policy, Keep(ratio=0.6))
