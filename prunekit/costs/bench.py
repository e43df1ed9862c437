"""One model without weights, on which the stages of methods are found and counted."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prunekit import conventions
from prunekit.adapter import ModelAdapter, adapter_for
from prunekit.budget import Budget, CostModel, match_average
from prunekit.cache import CACHE
from prunekit.costs.decoding import BITS, Caches, activation_bytes
from prunekit.costs.known import KnownValues
from prunekit.costs.parts import Cost
from prunekit.costs.prompt import Prompt
from prunekit.costs.repeats import RecordingCache, Repeats
from prunekit.costs.requests import left_open
from prunekit.costs.results import MethodCost
from prunekit.errors import BudgetError, CostError
from prunekit.flops import on_device, trace
from prunekit.keep import Keep
from prunekit.plan import Method, Plan, Stage
from prunekit.policy import PruningPolicy
from prunekit.session import prune

__all__ = ["Bench"]


class Bench:
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
                found = trace(adapter, inputs, stages, self.repeats, logits_to_keep=1, **{CACHE: cache})
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
