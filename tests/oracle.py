"""The mask oracle: what pruning must equal, said without any of the core.

Pruning at a site is the same as a dense run in which every later layer is forbidden to look at the dropped tokens.
This module builds that dense run from plain forward pre-hooks on a model that no session has ever touched: each layer
is handed the family's own mask with the dropped columns hidden. The hooks derive everything from the shapes of the
call, so that prefill, decoding, beams and a second prompt need no code of their own. Only the kept indices come from
the session's trace.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from catalogue import Family
from torch import Tensor, nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from prunekit.cache import given_cache

Inputs = dict[str, Tensor]


def placeholders(inputs: Inputs, family: Family) -> Tensor:
    """Columns of visual tokens, [batch, length]."""
    return torch.isin(inputs["input_ids"], torch.tensor(family.tokens)) & inputs["attention_mask"].bool()


def positions(record: Any, inputs: Inputs, family: Family) -> Tensor:
    """Columns of the prompt that one trace record leaves, [batch, length]: all text, and the visual tokens it kept."""
    visual = placeholders(inputs, family)
    number = visual.long().cumsum(-1) - 1
    kept = torch.zeros_like(visual)
    for row in range(len(visual)):
        stays = record.kept[row][record.kept[row] >= 0]
        kept[row] = torch.isin(number[row], stays)
    return kept | ~visual


def latest(trace: Sequence[Any], stages: int) -> list[Any]:
    """The records of the latest prefill."""
    return list(trace)[len(trace) - stages :]


class Alive:
    """Which columns of the prompt each layer may look at, from the records of one prefill."""

    def __init__(self, records: Sequence[Any], inputs: Inputs, family: Family) -> None:
        self.inputs, self.family = inputs, family
        self.text = ~placeholders(inputs, family)
        self.real = inputs["attention_mask"].bool()
        self.sites = [(r.site, positions(r, inputs, family)) for r in records]

    def decoder(self, layer: int) -> Tensor:
        """[batch, length]: columns in the keys of this decoder layer."""
        alive = self.real.clone()
        for site, columns in self.sites:
            part, _, index = site.partition(".")
            if part != "decoder" or layer >= int(index):
                alive &= columns
        return alive

    def encoder(self, layer: int) -> Tensor | None:
        """[rows, columns]: columns in the keys of this encoder layer, None where nothing is dropped."""
        visual = ~self.text
        alive = torch.ones_like(visual)
        for site, columns in self.sites:
            part, _, index = site.partition(".")
            if part == "vision" and layer > int(index):
                alive &= columns
        return None if alive.all() else self.family.columns(alive[visual], self.inputs)  # in the order of the prompt

    def planned(self, layer: int) -> int:
        """Length of this layer's cache after the prefill."""
        return int(self.decoder(layer).sum(-1).max())

    def final(self) -> Tensor:
        """Columns alive in the last layer: those whose logits mean something."""
        return self.decoder(10**6)


def _hidden(mask: Tensor | None, alive: Tensor, queries: int, implementation: str, always: int) -> Tensor:
    """The family's own mask, without the keys that are not alive; `mask` None is plain causality.

    A window's cache has forgotten some of the first columns, but for the first `always` ones.
    """
    keys = alive.shape[1]
    if mask is None:
        allowed = torch.arange(keys) <= torch.arange(keys - queries, keys)[:, None]
        mask = allowed[None, None]
    alive = torch.cat([alive[:, :always], alive[:, always + keys - mask.shape[-1] :]], dim=1)
    allowed = (mask if mask.dtype == torch.bool else mask == 0) & alive[:, None, None, :]
    allowed = allowed | ~allowed.any(-1, keepdim=True)  # padding rows: let them look anywhere, nobody looks at them
    if implementation == "sdpa":
        return allowed
    return torch.zeros(allowed.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)


@contextmanager
def masked(model: nn.Module, alive: Alive, family: Family) -> Iterator[nn.Module]:
    """Run the dense model with the dropped columns masked out, in every forward pass inside the `with`."""

    columns_seen = 0  # with those of this pass; layers that share keys have no cache to ask

    def of_decoder(layer: int) -> Any:
        columns = alive.decoder(layer)
        kinds = getattr(model.config.get_text_config(), "layer_types", None) or ()
        always = columns.shape[1] if "reference_sliding_attention" in kinds else 0

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            nonlocal columns_seen
            batch, new = (args[0] if args else kwargs["hidden_states"]).shape[:2]
            if layer == 0:
                cache = given_cache(kwargs)
                columns_seen = new + (cache.get_seq_length() if cache is not None else 0)
            keys = columns.repeat_interleave(batch // len(columns), dim=0)  # beams
            later = torch.ones(batch, max(0, columns_seen - keys.shape[1]), dtype=torch.bool)
            keys = torch.cat([keys, later], dim=1)[:, :columns_seen]
            implementation = module.self_attn.config._attn_implementation
            mask = _hidden(kwargs["attention_mask"], keys, new, implementation, always)
            return args, kwargs | {"attention_mask": mask}

        return hook

    with ExitStack() as stack:
        for layer, module in enumerate(model.get_submodule(family.decoder_layers)):
            stack.callback(module.register_forward_pre_hook(of_decoder(layer), with_kwargs=True).remove)
        if any(site.startswith("vision") for site, _ in alive.sites):
            stack.enter_context(_masked_encoder(model, alive, family))
        yield model


@contextmanager
def _masked_encoder(model: nn.Module, alive: Alive, family: Family) -> Iterator[None]:
    """Hide dropped patches from the encoder's attention, wherever and in however many chunks a layer computes it."""
    hidden: dict[nn.Module, Tensor] = {}
    place: dict[nn.Module, int] = {}
    for layer, module in enumerate(model.get_submodule(family.encoder_layers)):
        columns = alive.encoder(layer)
        hidden |= {} if columns is None else dict.fromkeys(module.modules(), columns)
    mapping = ALL_ATTENTION_FUNCTIONS._local_mapping
    before = dict(mapping)

    def stand_in(name: str) -> Any:
        def attention(
            module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **kw: Any
        ) -> Any:
            function = before.get(name) or ALL_ATTENTION_FUNCTIONS._global_mapping.get(name)
            function = function or sys.modules[type(module).__module__].eager_attention_forward
            if module not in hidden:
                return function(module, query, key, value, attention_mask, **kw)
            columns, keys = hidden[module], key.shape[2]
            start = place.get(module, 0) % columns.shape[1]  # an encoder of many images calls once for each
            place[module] = start + keys
            allowed = columns[:, None, None, start : start + keys].expand(-1, 1, query.shape[2], -1)
            if attention_mask is not None:
                allowed = allowed & (attention_mask if attention_mask.dtype == torch.bool else attention_mask == 0)
            weights = (query @ key.transpose(-1, -2) * kw.get("scaling", query.shape[-1] ** -0.5)).float()
            weights = weights.masked_fill(~allowed, torch.finfo(torch.float32).min).softmax(-1)
            return (weights @ value).transpose(1, 2).contiguous(), None

        return attention

    try:
        mapping.update({name: stand_in(name) for name in ("eager", "sdpa")})
        yield
    finally:
        mapping.clear()
        mapping.update(before)


def row_of(inputs: Any, row: int, family: Family) -> Inputs:
    """One sample of a batch as it would be sent alone: without padding, and with its own images."""
    return inputs.rows[row]
