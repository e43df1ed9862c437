"""`prunekit.cost`: what methods cost on a model, from its configuration alone.

The model is laid out on the meta device, where tensors have shapes and no data; the real session and the real policies
run there, under fvcore's tracer. No weights, no images and no accelerator are needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from prunekit import conventions
from prunekit._cost_requests import amount, left_open, named
from prunekit._decoding import BITS, Caches, activation_bytes
from prunekit._known import KnownValues
from prunekit._prompt import Prompt, make_prompt
from prunekit._repeats import RecordingCache, Repeats
from prunekit._skeleton import skeleton
from prunekit.adapter import ModelAdapter, adapter_for
from prunekit.budget import Budget, CostModel, match_average
from prunekit.errors import BudgetError, ConfigError, CostError, PrunekitError, nearest
from prunekit.flops import Cost, on_device, trace
from prunekit.keep import Keep
from prunekit.plan import Method, Plan, Stage
from prunekit.policy import PruningPolicy
from prunekit.session import prune

__all__ = ["Costs", "MethodCost", "cost"]

Item = str | Method | Stage | PruningPolicy | Sequence[Stage | Method]
"""A method by name (YAML text), a method, a policy, a stage or stages."""

Amount = int | float | str | Budget
"""A number is an average per decoder layer; texts are those of `Budget.parse`, such as `flops=0.3`."""

CONVENTION = {
    "unit": "one multiply-add is one MAC, and two FLOPs",
    "attention": "full: queries times keys, whatever a mask hides",
    "biases": "not counted",
    "prefill": "the whole batch; one position through the output head",
}


@dataclass(frozen=True)
class MethodCost:
    """What one method costs on one prompt.

    Attributes:
        name: of the method; `dense` for the model as it is.
        budget: what it was matched to: visual tokens per decoder layer as a share or a number, or a text such as
            `flops=0.3`; None: as configured.
        stages: `site`, `policy` and `keep` of each.
        cost: multiply-adds of the prefill, and under `decode` those of the tokens after it.
        kv_lengths: keys in each decoder layer's cache after the prefill.
        kv_bytes: of all keys and values after the prefill.
        kv_bytes_at_end: after the last generated token.
        activation_bytes: an estimate of what the widest decoder layer of the prefill holds besides: the larger of its
            MLP's and its attention's states, see the documentation. KV cache, weights and vision encoder apart.
        published: what a paper with the convention that was asked for would print: `total`, `dense`, `share`; or None.
    """

    name: str
    budget: int | float | str | None
    stages: tuple[dict[str, str], ...]
    cost: Cost
    kv_lengths: tuple[int, ...]
    kv_bytes: int
    kv_bytes_at_end: int
    activation_bytes: int
    published: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        lists = {"stages": list(self.stages), "kv_lengths": list(self.kv_lengths)}
        sizes = {"kv_bytes": self.kv_bytes, "kv_bytes_at_end": self.kv_bytes_at_end}
        sizes |= {"activation_bytes": self.activation_bytes}
        published = {} if self.published is None else {"published": self.published}
        return {"name": self.name, "budget": self.budget, **self.cost.to_dict(), **sizes, **lists, **published}


@dataclass(frozen=True)
class Costs:
    """What methods cost on a model.

    Attributes:
        model: as it was given.
        parameters: of the model.
        prompt: the numbers that were asked for, and what followed from them.
        dense: the model without pruning.
        pruned: the methods, in order.
        skipped: with `unreachable="skip"`, `name`, `budget` and `reason` of what has no count.
    """

    model: str
    parameters: int
    prompt: dict[str, Any]
    dense: MethodCost
    pruned: tuple[MethodCost, ...]
    skipped: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """All numbers, for JSON: `pruned` is one object for one method, and a list for several."""
        found = [each.to_dict() for each in self.pruned]
        pruned = {} if not found else {"pruned": found[0] if len(found) == 1 else found}
        head = {"model": self.model, "parameters": self.parameters, "prompt": self.prompt, "convention": CONVENTION}
        skipped = {"skipped": list(self.skipped)} if self.skipped else {}
        return {**head, "dense": self.dense.to_dict(), **pruned, **skipped}


def cost(
    model: Any,
    *methods: Item,
    budget: Amount | Sequence[Amount] | None = None,
    text_tokens: int = 64,
    images: int = 1,
    image_size: tuple[int, int] | None = None,
    batch: int = 1,
    decode_tokens: int = 0,
    dtype: str = "bfloat16",
    convention: str | None = None,
    unreachable: str = "error",
) -> Costs:
    """Count what methods cost on a model of which only the configuration is there.

    Args:
        model: a preset such as `llava-1.5-7b` (see `prunekit.presets.presets`), `tiny`, a folder with a config.json, a
            hub name whose config is in the local cache, a config, or a model.
        *methods: names such as `"STAR"`, methods, policies, stages, or lists of stages. A policy alone becomes one
            stage: at the input or, where it reads the language model's attention, before its third layer.
        budget: what every method is matched to, or several: average visual tokens per decoder layer as a share or a
            number, or a `prunekit.budget.Budget` (also as text, `flops=0.3`); None: methods as they are configured.
        text_tokens: tokens of a sample that are not visual.
        images: images of each sample.
        image_size: height and width in pixels; by default one that suits the model.
        batch: samples, all alike.
        decode_tokens: tokens generated after the prefill.
        dtype: of the KV cache, for its bytes.
        convention: a name from `prunekit.conventions`: what a paper with that formula would print, beside the count.
        unreachable: `skip` goes on where a method cannot reach a budget, cannot work on this model, or keeps as many
            tokens as the data decide, and says so in `Costs.skipped`.

    Raises:
        CostError: no such prompt, or the number of tokens that a method keeps depends on the data.
        BudgetError: a method cannot reach the budget.
        ConfigError: no such model, method or type.
        CheckpointError: the model's config cannot be read.
        UnsupportedModelError: the model is of no supported family.
        SiteError, NeedsError: a method cannot work on this model.
    """
    if dtype not in BITS:
        raise ConfigError(f"dtype={dtype!r}: allowed are {', '.join(BITS)}.{nearest(str(dtype), BITS)}")
    if unreachable not in ("error", "skip"):
        raise ConfigError(f"unreachable={unreachable!r}: allowed are 'error' and 'skip'.")
    if isinstance(decode_tokens, bool) or not isinstance(decode_tokens, int) or decode_tokens < 0:
        raise CostError(f"decode_tokens={decode_tokens!r}: allowed are whole numbers from 0.")
    rule = None if convention is None else conventions.convention(convention).name
    listed = named(methods)
    bones = skeleton(model)
    bench = _Bench(bones.model, decode_tokens, dtype, rule)
    prompt = make_prompt(bones, bench.adapter, text_tokens, images, image_size, batch)
    dense = bench.run("dense", None, (), prompt)
    pruned, skipped = [], []
    budgets = [amount(each) for each in (budget if isinstance(budget, (list, tuple)) else [budget])]
    for name, item in listed:
        for each in budgets:
            where = f"methods.{name}" if each is None else f"methods.{name} at budget {each}"
            try:
                pruned.append(bench.run(name, each, bench.stages(item, each, prompt), prompt))
            except PrunekitError as error:
                if unreachable == "skip":
                    skipped.append({"name": name, "budget": each, "reason": str(error)})
                    continue
                raise type(error)(f"{where}: {error}") from None
    facts = {
        "batch": batch, "images": images, "image_size": list(prompt.size), "text_tokens": text_tokens,
        "visual_tokens": prompt.visual, "decode_tokens": decode_tokens, "dtype": dtype,
    }  # fmt: skip
    parameters = sum(parameter.numel() for parameter in bones.model.parameters())
    return Costs(bones.name, parameters, facts, dense, tuple(pruned), tuple(skipped))


class _Bench:
    """One model, on which prompts are counted."""

    def __init__(self, model: Any, decode_tokens: int, dtype: str, convention: str | None = None) -> None:
        self.adapter: ModelAdapter = adapter_for(model)
        self.repeats, self.values = Repeats(self.adapter), KnownValues()
        self.decode_tokens, self.dtype, self.convention = decode_tokens, dtype, convention

    def run(self, name: str, budget: int | float | str | None, stages: Sequence[Stage], prompt: Prompt) -> MethodCost:
        """Count a method on a prompt."""
        adapter = self.adapter
        cache = RecordingCache(adapter.model.config.get_text_config(decoder=True))
        try:
            with torch.no_grad(), self.values:
                inputs = on_device(adapter.model, prompt.inputs)
                found = trace(adapter, inputs, stages, self.repeats, logits_to_keep=1, past_key_values=cache)
        except CostError as error:
            raise CostError(
                f"{error}{left_open(stages, prompt.visual)}"
                " Give the method a number of tokens (keep=..., or a budget), or count one prompt of a model"
                " with weights: prunekit.flops.count."
            ) from None
        except (RuntimeError, NotImplementedError) as error:
            raise CostError(
                f"{type(adapter.model).__name__} cannot be run without weights ({type(error).__name__}:"
                f" {' '.join(str(error).split())[:160]}); use prunekit.flops.count on a model with weights."
            ) from error
        caches = Caches.of(adapter, cache, found, self.dtype)
        whole = Cost(
            {**found.macs, "decode": caches.decode_macs(self.decode_tokens)},
            found.prefill_per_layer, found.scorers, found.visual_tokens_per_layer, found.uncounted,
        )  # fmt: skip
        shown = tuple(
            {"site": stage.site, "policy": str(stage.policy), "keep": "" if stage.keep is None else str(stage.keep)}
            for stage in stages
        )
        config = adapter.model.config.get_text_config(decoder=True)
        held = activation_bytes(config, max(caches.tokens), caches.batch, self.dtype)
        sizes = caches.bytes(0), caches.bytes(self.decode_tokens), held
        published = self._published(found, prompt, caches.batch)
        return MethodCost(name, budget, shown, whole, caches.lengths, *sizes, published)

    def _published(self, found: Cost, prompt: Prompt, batch: int) -> dict[str, Any] | None:
        """What the literature's formula says of one sample."""
        if self.convention is None:
            return None
        config: Any = self.adapter.model.config.get_text_config(decoder=True)
        width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        keys = width * (getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        levels = [tokens // batch for tokens in found.visual_tokens_per_layer]
        sizes = config.hidden_size, config.intermediate_size
        said = conventions.report(self.convention, levels, *sizes, text=prompt.text, keys=keys, visual=prompt.visual)
        numbers = {"total": said.total, "dense": said.dense, "share": said.share}
        return {"convention": said.convention.name, "formula": said.convention.formula, **numbers}

    def stages(self, item: Any, budget: int | float | str | None, prompt: Prompt) -> tuple[Stage, ...]:
        """The stages of a method at a budget, checked against the model."""
        shape, visual = self.adapter.shape, prompt.visual
        if budget is None:
            stages = Plan.of(self._items(item, None), shape).stages
        elif isinstance(budget, str):
            wanted, items = Budget.parse(budget), self._items(item, 1.0)
            if wanted.kind == "kv" and wanted.amount > 1 and BITS[self.dtype] < 8:
                raise BudgetError(f"{budget}: under {self.dtype} give a share of the KV cache instead of bytes.")
            Plan.of(items, shape)
            known = shape if wanted.kind in ("tokens", "ratio") else self.costs()
            given = item if isinstance(item, Method) else items
            stages = wanted.solve(given, known, visual=visual, text=prompt.text).stages
        else:
            if isinstance(budget, bool) or not isinstance(budget, (int, float)) or budget <= 0:
                raise BudgetError(f"budget={budget!r}: allowed are shares such as 0.25 and numbers such as 64.")
            average = budget * visual if isinstance(budget, float) else float(budget)
            if average > visual:
                raise BudgetError(f"{average:g} visual tokens per layer are asked for, but a sample has only {visual}.")
            items = self._items(item, average / visual)
            Plan.of(items, shape)  # sites first: an impossible site is not a matter of budgets
            stages = match_average(item if isinstance(item, Method) else items, average, visual=visual, depth=shape)
        with prune(self.adapter.model, *stages) as session:  # whatever a session would refuse is refused now
            session.plan.check(visual)
        return stages

    def costs(self) -> CostModel:
        """What budgets in FLOPs and bytes are measured by, at the KV cache's own precision."""
        return CostModel.of(self.adapter.model, value_bytes=max(1, BITS[self.dtype] // 8))

    def _items(self, item: Any, share: float | None) -> tuple[Stage | Method, ...]:
        if isinstance(item, (Method, Stage)):
            return (item,)
        if not isinstance(item, PruningPolicy):
            return tuple(item)
        if share is None and item.needs_keep:
            raise BudgetError(f"{type(item).__name__} alone has no budget of its own; give budget=..., or a Stage.")
        return (Stage(self._site(item), item, None if share is None else Keep(ratio=share)),)

    def _site(self, policy: PruningPolicy) -> str:
        """Where a policy goes that no stage gives a site."""
        of_text = any(not rows.of_vision for rows in policy.needs.attention)
        if "input" in policy.sites and not of_text:
            return "input"
        if "decoder" in policy.sites:
            return f"decoder.{min(2, self.adapter.depth - 1)}"
        return f"vision.{max(0, self.adapter.vision_sites - 1)}"
