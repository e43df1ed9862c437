"""Everything about a model and its library that a session could leave behind."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as torch_module
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

OWN = ("rope_deltas",)
"""What a model itself writes to its modules while it runs: M-RoPE models note at every prompt how far the position of
the first generated token is from the length of the prompt."""


def snapshot(model: Any) -> dict[str, Any]:
    """Everything that a session could leave behind, and nothing of `OWN`."""
    state: dict[str, Any] = {}
    for name, module in model.named_modules():
        attributes = vars(module)
        state[f"{name} attributes"] = sorted(attributes)
        state[f"{name} class"] = (type(module), sorted(vars(type(module))))
        for key, value in attributes.items():
            if key.endswith("_hooks") or key.startswith(("_forward_hooks", "_forward_pre_hooks")):
                state[f"{name} {key}"] = [(number, id(hook)) for number, hook in value.items()]
            elif key not in OWN and not isinstance(value, (dict, nn.Module)):
                state[f"{name} {key}"] = id(value) if callable(value) else repr(value)
        if hasattr(module, "config"):
            state[f"{name} config"] = {key: repr(value) for key, value in vars(module.config).items()}
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        state[f"{name} data"] = (tensor.data_ptr(), tensor._version)
    state["generation"] = model.generation_config.to_dict()
    for registry in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        for name in ("_local_mapping", "_global_mapping"):
            state[f"{type(registry).__name__}{name}"] = dict(getattr(registry, name))
    for key, value in vars(torch_module).items():
        if key.startswith("_global") and isinstance(value, dict):
            state[key] = sorted(value)
    state["random"] = torch.get_rng_state().tolist()
    return state


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key))
