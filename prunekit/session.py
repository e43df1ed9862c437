"""`prune`: attaches a plan to an unmodified model, and the session that owns every hook."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal, cast

import torch
from torch import Tensor, nn

from prunekit._checks import Checks, check_selection
from prunekit._decoder import Decoder
from prunekit._reads import resolve_needs
from prunekit._stages import Stages
from prunekit._text import TextSide
from prunekit._vision import VisionSide
from prunekit.adapter import ModelAdapter, adapter_for
from prunekit.errors import SessionError, SiteError
from prunekit.plan import Method, Plan, Stage
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens
from prunekit.trace import TraceRecord, cost_scope

__all__ = ["Session", "prune"]

Positions = Literal["original", "compact", "published"]


class Session:
    """Owns every hook and all state of a run; made by `prune`.

    Attributes:
        model: the model, unmodified.
        adapter: names of its parts.
        plan: the resolved stages.
        trace: one `TraceRecord` per stage and prefill, the latest last; clear it as you like.
        side: tensors that only you can give to policies (`Needs.side`), by name; set them before the model runs.
    """

    def __init__(self, model: nn.Module, plan: Plan, adapter: ModelAdapter, positions: Positions) -> None:
        self.model, self.plan, self.adapter, self.positions = model, plan, adapter, positions
        self.trace: list[TraceRecord] = []
        self.side: dict[str, Tensor] = {}
        self.checks = Checks()
        self._hooks: ExitStack | None = None
        layers = resolve_needs(plan, adapter)
        self._vision = VisionSide(adapter, plan.stages, layers, self._select, self.side)
        run = Stages(plan, adapter, layers, self._select, self.trace.append, self.side)
        self._text = TextSide(adapter, layers, self._vision, run, Decoder(adapter, positions == "compact"))

    def __repr__(self) -> str:
        stages = ", ".join(f"{stage.site}: {stage.policy} keeps {stage.keep}" for stage in self.plan.stages)
        return f"Session({type(self.model).__name__}; {stages})"

    def __enter__(self) -> Session:
        if self._hooks is not None:
            raise SessionError("A session is used once; call prune(model, ...) again for another.")
        for hook in self.adapter.text_model._forward_pre_hooks.values():
            if isinstance(getattr(hook, "__self__", None), TextSide):
                raise SessionError(
                    "This model is already being pruned: sessions on one model cannot be nested. Give all stages to one"
                    " prune(model, stage, stage, ...)."
                )
        with ExitStack() as hooks:
            hooks.callback(self._text.release)
            hooks.callback(self._vision.forget)
            self._vision.attach(hooks)
            self._text.attach(hooks)
            self._hooks = hooks.pop_all()
        return self

    def __exit__(self, kind: object, *rest: object) -> None:
        if self._hooks is not None:
            self._hooks.close()
        if kind is None:
            self.checks.settle()

    def _select(self, stage: Stage, tokens: VisualTokens) -> tuple[Selection, tuple[int, ...]]:
        """Ask a stage's policy, and check its answer."""
        self.checks.settle()
        with cost_scope(f"scorer.{stage.site}"), torch.no_grad():
            selection = stage.policy.select(tokens, stage.keep)
        counts = check_selection(stage, tokens, selection, self.checks)
        return selection.trimmed(max(counts)), counts


def prune(model: nn.Module, *stages_or_method: Stage | Method, positions: Positions = "original") -> Session:
    """Prune visual tokens of every prompt that `model` reads inside the `with` block.

    Args:
        model: a Hugging Face vision-language model of a supported family, unmodified.
        *stages_or_method: a named method such as `STAR(keep=0.25)`, or `Stage`s in the order of the forward pass.
        positions: `original` leaves kept tokens their position ids; `compact` numbers what is left without gaps;
            `published` does what the method's authors do (`Method.positions`).

    Returns:
        A session, to be used as `with prune(...) as session`: its hooks are attached inside the block alone.

    Raises:
        UnsupportedModelError: the model is of no supported family.
        SiteError: a stage's site does not exist on this model.
        NeedsError: a policy reads something this model does not have.
        BudgetError: stages keep more than there is.
        SessionError: `positions` is neither, or cannot be had on this model; on entering the block, the model is
            already being pruned.
    """
    adapter = adapter_for(model)
    if not stages_or_method:
        raise SiteError("prune(model) needs at least one stage or a method, for example prune(model, STAR(keep=0.25)).")
    if positions == "published":
        positions = _published(stages_or_method)
    if positions not in ("original", "compact"):
        raise SessionError(f"positions={positions!r}: allowed are 'original', 'compact' and 'published'.")
    if positions == "compact":
        adapter.check_compact()
    plan = Plan.of(stages_or_method, adapter.shape)
    for stage in plan.stages:
        adapter.check_site(stage.where)
        if stage.where.kind not in stage.policy.sites:
            raise SiteError(
                f"{type(stage.policy).__name__} cannot work at {stage.site!r}; its sites are"
                f" {', '.join(stage.policy.sites)}."
            )
    return Session(model, plan, adapter, positions)


def _published(items: Sequence[Stage | Method]) -> Positions:
    """The positions of the only method there is."""
    if len(items) != 1 or not isinstance(items[0], Method):
        raise SessionError("positions='published' is what one named method does; give stages 'original' or 'compact'.")
    return cast(Positions, items[0].positions)
