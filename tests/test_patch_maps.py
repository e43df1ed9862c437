"""Which patches a visual token is made of, as adapters say and as the models do.

With the attention of the encoder switched off, a token depends on its own patches alone. So the gradient of a token
tells which they are.
"""

from __future__ import annotations

import inspect

import pytest
import torch
from catalogue import FAMILIES
from torch import Tensor, nn

from prunekit.adapter import adapter_for
from prunekit.models.tiny.builders import tiny_random
from prunekit.patches import Encoded

KINDS = [
    (name, kind)
    for name, family in FAMILIES.items()
    for kind in ("image", *["video"] * (family.encoder_video == "video"))
    if family.encoder_layers
] + [("qwen3_5", "image"), ("qwen3_5", "video")]


def _without_attention(layers: nn.ModuleList) -> None:
    for layer in layers:
        for name, weight in layer.named_parameters():
            if any(part in name for part in ("o_proj", "out_proj", "attn.proj", "projection_layer")):
                weight.data.zero_()


@pytest.mark.parametrize(("name", "kind"), KINDS)
def test_tokens_are_made_of_their_patches(name: str, kind: str) -> None:
    model, make_inputs = tiny_random(name)
    adapter = adapter_for(model)
    layers = adapter.vision_layers
    assert layers is not None
    _without_attention(layers)
    inputs = make_inputs(images=3 if kind == "image" else 0, videos=2 if kind == "video" else 0)
    seen: list[Tensor] = []

    def note(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> tuple[object, object]:
        states = (args[0] if args else kwargs["hidden_states"]).detach().requires_grad_()
        seen.append(states)
        return ((states, *args[1:]), kwargs) if args else ((), {**kwargs, "hidden_states": states})

    handle = layers[0].register_forward_pre_hook(note, with_kwargs=True)
    method = getattr(adapter.core, f"get_{kind}_features")
    accepted = {key: value for key, value in inputs.items() if key in inspect.signature(method).parameters}
    output = method(**accepted)
    handle.remove()
    features = output.pooler_output
    tokens = (
        features.flatten(0, -2) if isinstance(features, Tensor) else torch.cat([f.flatten(0, -2) for f in features])
    )
    states = torch.cat([each.reshape(-1, *each.shape[-2:]) for each in seen])
    weights = torch.randn(tokens.shape[-1])
    pattern = []
    for token in tokens:
        grads = torch.autograd.grad((token * weights).sum(), seen, retain_graph=True)
        pattern.append(
            torch.cat([g.reshape(-1, *g.shape[-2:]) for g in grads]).abs().sum(-1)[:, adapter.prefix_tokens :]
        )
    does = torch.stack(pattern) > 1e-9  # [tokens, images, patches]

    images, patches = states.shape[0], states.shape[1] - adapter.prefix_tokens
    one_hot = torch.eye(images * patches).view(images * patches, images, patches).transpose(0, 1)
    counts = adapter.image_tokens(features, accepted)
    encoded = Encoded(kind, accepted, output, counts, len(tokens))
    says = adapter.to_tokens(one_hot, encoded).view(len(tokens), images, patches) > 0
    assert says.shape == does.shape
    assert torch.equal(says, does), f"{int((says != does).any(-1).any(-1).sum())} of {len(tokens)} tokens differ"
