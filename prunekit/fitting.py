"""Fitting methods to a model: FitPrune's schedule, and the layer at which VTW withdraws.

The model runs on a few samples in a session that reads and drops nothing. What is fitted from what it read are pure
functions of tensors: `FitPrune.fit` and `VTW.search`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from prunekit.adapter import adapter_for
from prunekit.budget import tokens_per_layer
from prunekit.errors import BudgetError, DataError, PruningWarning, ScoresError, SiteError
from prunekit.flops import count
from prunekit.keep import Keep
from prunekit.needs import Needs
from prunekit.plan import Stage
from prunekit.policies.fitprune import FitPrune
from prunekit.policies.joint_attention import JointAttention
from prunekit.policies.random import Random
from prunekit.policies.vtw import VTW
from prunekit.policy import PruningPolicy
from prunekit.selection import Selection
from prunekit.session import prune
from prunekit.tokens import VisualTokens

__all__ = ["Fit", "Search", "fit_schedule", "search_layer"]

Batches = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Fit:
    """A fitted schedule.

    Attributes:
        method: FitPrune with its schedule.
        epsilon: the bound on the share of a layer's attention that goes to what it deletes, see `FitPrune.within`.
        saving: share of the multiply-adds of the language model's prefill that the schedule saves on the samples,
            without padding and without what the policy itself computes.
        visual_tokens_per_layer: visual tokens that enter each decoder layer, of a sample with `method.visual` of them.
        samples: samples with visual tokens that it was fitted on.
    """

    method: FitPrune
    epsilon: float
    saving: float
    visual_tokens_per_layer: tuple[int, ...]
    samples: int


@dataclass(frozen=True)
class Search:
    """A layer that was searched for.

    Attributes:
        method: VTW at that layer.
        similarity: mean cosine of the last token's final state to that of the whole model, by the layer before which
            all visual tokens go.
        samples: samples that were looked at.
    """

    method: VTW
    similarity: dict[int, float]
    samples: int


@dataclass(frozen=True, eq=False)
class Reading:
    """What is remembered of a batch at one layer.

    Attributes:
        received: attention that each visual token receives, by row set of `JointAttention`, [batch, visual] on the CPU.
        visual: visual tokens of each row.
        text: other tokens of each row.
    """

    received: tuple[Tensor, ...]
    visual: tuple[int, ...]
    text: tuple[int, ...]


@dataclass(frozen=True)
class Watch(PruningPolicy):
    """Keep everything, and tell what visual tokens receive."""

    tell: Callable[[Reading], None]

    needs = Needs(JointAttention.needs.attention, text=True)
    needs_keep = False
    sites = ("decoder",)

    def planned(self, total: int) -> int:
        return total

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        assert tokens.text_valid is not None  # it is needed
        received = tuple(tokens.attention[rows].cpu() for rows in self.needs.attention)
        self.tell(Reading(received, tokens.total, tuple(tokens.text_valid.sum(1).tolist())))
        return Selection.everything(tokens)


@torch.no_grad()
def fit_schedule(model: nn.Module, batches: Batches, saving: float) -> Fit:
    """Fit FitPrune's schedule: delete what the language model attends to least, until its prefill costs less.

    The model runs once on each batch, and twice more on the first one, to count what its layers cost.

    Args:
        model: a supported model; it is left as it was.
        batches: inputs as the processor makes them, each of one or more samples.
        saving: the share of the multiply-adds of the language model's prefill to be saved, at least.

    Raises:
        BudgetError: `saving` is out of reach, or no share.
        DataError: there is no sample with visual tokens.
        NeedsError: a sample has no text after its image.
        ScoresError: attention is not finite.
        UnsupportedModelError: no supported family, or attention whose cost cannot be counted.
    """
    if not 0 < saving < 1:
        raise BudgetError(f"saving={saving}: a share of the dense model's cost, above 0 and below 1.")
    depth, costs = adapter_for(model).depth, None
    seen: list[list[Reading]] = [[] for _ in range(depth - 1)]  # by layer, then by batch
    stages = [Stage(f"decoder.{i + 1}", Watch(readings.append)) for i, readings in enumerate(seen)]
    for inputs in batches:
        _run(model, inputs, stages)
        if costs is None and seen[0]:
            costs = Costs.measure(model, inputs, seen[0][-1].visual, seen[0][-1].text)
    if costs is None:
        raise DataError("no sample has visual tokens: there is nothing to fit a schedule on.")
    rows = [pair for reading in seen[0] for pair in zip(reading.visual, reading.text, strict=True)]
    used = [number for number, (visual, _) in enumerate(rows) if visual]
    counts, texts = [rows[number][0] for number in used], [rows[number][1] for number in used]
    image, text = (
        torch.stack([_rows([reading.received[which] for reading in layer], max(counts))[used] for layer in seen])
        for which in range(2)
    )
    if not (image.isfinite().all() and text.isfinite().all()):
        raise ScoresError("the attention of this model is not finite: load it in another type, such as float32.")

    def cost(method: FitPrune | None) -> float:
        levels = {n: (n,) * depth if method is None else tokens_per_layer(method, n, depth) for n in set(counts)}
        return sum(costs.of(levels[n], n, others) for n, others in zip(counts, texts, strict=True))

    dense = cost(None)
    method, epsilon = FitPrune.fit(image, text, counts, saving, lambda method: 1 - cost(method) / dense)
    levels = tokens_per_layer(method, method.visual, depth)
    return Fit(method, epsilon, 1 - cost(method) / dense, levels, len(counts))


@torch.no_grad()
def search_layer(model: nn.Module, batches: Batches, threshold: float, first: int = 5) -> Search:
    """Search the earliest layer from `first` on before which all visual tokens can be withdrawn (VTW).

    The model runs on each batch as it is, and once for every layer. The final states that are compared are those of
    the last token behind the language model's final norm; which ones the authors compare at which threshold is not
    known to us.

    Args:
        model: a supported model; it is left as it was.
        batches: inputs as the processor makes them, each of one or more samples.
        threshold: the least mean cosine, above 0 and at most 1.
        first: the earliest layer to try.

    Raises:
        BudgetError: no layer leaves such a cosine (the message gives the largest), or `threshold` is none.
        SiteError: the model has no layer `first`.
        DataError: there is no sample with visual tokens.
    """
    depth = adapter_for(model).depth
    if not 1 <= first < depth:
        raise SiteError(f"first={first}: the earliest layer that VTW tries; this model allows 1 to {depth - 1}.")
    if not 0 < threshold <= 1:
        raise BudgetError(f"threshold={threshold}: a mean cosine, above 0 and at most 1.")
    whole, withdrawn = list[Tensor](), list[Tensor]()
    for inputs in batches:
        readings: list[Reading] = []
        state = _run(model, inputs, [Stage("decoder.1", Watch(readings.append))])
        if not readings:
            continue
        used = [number for number, visual in enumerate(readings[0].visual) if visual]
        whole.append(state[used])
        withdrawn.append(torch.stack([_run(model, inputs, VTW(i).stages(depth))[used] for i in range(first, depth)]))
    if not whole:
        raise DataError("no sample has visual tokens: there is nothing to search a layer on.")
    states = torch.cat(whole), torch.cat(withdrawn, 1)
    found = VTW.search(*states, threshold, first)
    return Search(found, dict(enumerate(VTW.similarity(*states).tolist(), first)), len(states[0]))


def _run(model: nn.Module, inputs: Mapping[str, Any], stages: Iterable[Stage]) -> Float[Tensor, "batch dim"]:
    """One prefill; returns the final state of each row's last token."""
    states: list[Tensor] = []
    norm = adapter_for(model).final_norm
    handle = norm.register_forward_hook(lambda module, args, output: states.append(output))
    try:
        with prune(model, *stages), warnings.catch_warnings():
            warnings.simplefilter("ignore", PruningWarning)  # a prompt without images: left out by who asks
            model(**inputs, use_cache=True, logits_to_keep=1)
    finally:
        handle.remove()
    mask, last = inputs.get("attention_mask"), states[-1]
    if mask is None:
        return last[:, -1]
    padding = mask.flip(1).argmax(1)  # at the right
    return last[torch.arange(len(last), device=last.device), last.shape[1] - 1 - padding]


def _rows(parts: list[Tensor], visual: int) -> Float[Tensor, "samples visual"]:
    """Rows of all batches, filled up with zeros."""
    return torch.cat([nn.functional.pad(part, (0, visual - part.shape[1])) for part in parts])


@dataclass(frozen=True)
class Costs:
    """Multiply-adds of the language model on one sample: `linear * n + quadratic * n^2` in each layer.

    Attributes:
        linear: of each layer, per token.
        quadratic: of each layer, per pair of tokens.
        rest: of what is no layer, per token of the prompt (rotary tables).
    """

    linear: tuple[float, ...]
    quadratic: tuple[float, ...]
    rest: float

    @classmethod
    def measure(cls, model: nn.Module, inputs: Mapping[str, Any], visual: Sequence[int], text: Sequence[int]) -> Costs:
        """Count one batch dense, and with one visual token a sample: two lengths tell a layer's two factors.

        Args:
            visual: visual tokens of each row.
            text: other tokens of each row.
        """
        prompt: Tensor = inputs["inputs_embeds"] if inputs.get("input_ids") is None else inputs["input_ids"]
        rows, long = prompt.shape[:2]
        short = max(others + min(1, seen) for seen, others in zip(visual, text, strict=True))  # padding has left, too
        if short == long:
            raise DataError("no visual token can be deleted from the first batch: its longest prompt has one at most.")
        dense, pruned = count(model, inputs), count(model, inputs, Stage("input", Random(), Keep(tokens=1)))
        pairs = zip(dense.prefill_per_layer, pruned.prefill_per_layer, strict=True)
        per_token = [(whole / (rows * long), cut / (rows * short)) for whole, cut in pairs]
        quadratic = tuple((whole - cut) / (long - short) for whole, cut in per_token)
        linear = tuple(whole - factor * long for (whole, _), factor in zip(per_token, quadratic, strict=True))
        rest = (dense.macs["prefill"] - sum(dense.prefill_per_layer)) / (rows * long)
        return cls(linear, quadratic, rest)

    def of(self, levels: tuple[int, ...], visual: int, text: int) -> float:
        """A sample with `visual` visual tokens, of which `levels` enter each layer, and `text` other tokens."""
        lengths = (level + text for level in levels)
        layers = zip(lengths, self.linear, self.quadratic, strict=True)
        return sum(n * (linear + quadratic * n) for n, linear, quadratic in layers) + self.rest * (visual + text)
