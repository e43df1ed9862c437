"""`prune`: attaches a plan to an unmodified model, and the session that owns every hook."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Literal, cast

import torch
from torch import Tensor, nn

from prunekit._align import Layers
from prunekit._checks import Checks, check_selection
from prunekit._decoder import Decoder
from prunekit._stages import Stages
from prunekit._text import TextSide
from prunekit._vision import VisionSide
from prunekit.adapter import ModelAdapter, adapter_for
from prunekit.errors import NeedsError, SessionError, SiteError
from prunekit.needs import Rows, States
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
        layers = _resolve_needs(plan, adapter)
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


def _resolve_needs(plan: Plan, adapter: ModelAdapter) -> Layers:
    """Which layer each row set of each stage is read from, checked against the model before a hook is placed."""
    layers: Layers = {}
    for stage in plan.stages:
        needs = stage.needs
        if needs.bias and not adapter.masked_encoder:
            raise NeedsError(
                f"{type(stage.policy).__name__} at {stage.site!r} weighs attention, but the layers of the vision"
                f" encoder of {type(adapter.model).__name__} take no mask; turn that off (proportional=False)."
            )
        if needs.patches and (adapter.vision_tower is None or adapter.packed or adapter.merge > 1):
            raise NeedsError(
                f"{type(stage.policy).__name__} at {stage.site!r} reads the patch of each visual token, but tokens of"
                f" {type(adapter.model).__name__} are made of several patches, or its vision encoder is out of reach."
            )
        wanted: list[Rows | States] = list(needs.attention)
        for states in needs.all_states:
            _check_states(stage, states)
            if states.of_layer:
                wanted.append(states.at(stage.where.part))
        for rows in wanted:
            layers[stage.site, rows] = _layer(stage, rows, adapter)
    return layers


def _check_states(stage: Stage, states: States) -> None:
    """Refuse states that this part of the model does not have."""
    who, vision = (
        f"{type(stage.policy).__name__} at {stage.site!r} reads {states.queries!r}",
        states.at(stage.where.part),
    )
    if states.of_layer and states.kind == "hidden" and not vision.of_vision:
        raise NeedsError(f"{who} of a decoder layer; a policy reads those at its own site alone: `tokens.hidden`.")
    if states.of == "cls" and (stage.where.part > 0 or not vision.of_vision):
        raise NeedsError(f"{who}, which belong to one image; allowed at 'vision.<i>' and 'connector'.")
    if states.of == "text" and (stage.where.part == 0 or (vision.of_vision and states.of_layer)):
        raise NeedsError(f"{who}, but there is no text in the vision encoder; allowed at 'decoder.<i>' and 'input'.")
    if not states.of_layer and stage.where.part == 0:
        raise NeedsError(f"{who}, which exist in the language model; allowed at 'input' and 'decoder.<i>'.")


def _layer(stage: Stage, rows: Rows | States, adapter: ModelAdapter) -> int:
    site, policy, model = stage.where, type(stage.policy).__name__, type(adapter.model).__name__
    if rows.of_vision:
        if adapter.vision_tower is None:
            raise NeedsError(
                f"{policy} at {stage.site!r} reads {rows.queries!r} of the vision encoder, but no adapter names the"
                f" layers of that of {model}; allowed are policies that read the states alone, and at 'decoder.<i>'"
                " those that read the language model."
            )
        if "cls" in (rows.queries, getattr(rows, "of", "")) and not adapter.has_cls:
            raise NeedsError(
                f"{policy} reads the attention of [CLS], but the vision encoder of {model} has no [CLS] token; read"
                " 'visual' instead, the attention of the patches to each other."
            )
        if adapter.packed and isinstance(rows, Rows) and rows.reduce is None:
            raise NeedsError(
                f"{policy} reads every row of {rows.queries!r}, but the vision encoder of {model} runs on the patches"
                " of all images in one sequence; use Rows(..., reduce='mean')."
            )
        own = site.index if site.kind == "vision" else adapter.feature_layer
        depth = adapter.vision_depth
        latest = site.index if site.kind == "vision" else depth - 1
    elif site.part < 2:
        raise NeedsError(
            f"{policy} reads attention from text to image ({rows.queries!r}), which exists only in the language"
            f" model; place it at 'decoder.<i>' instead of {stage.site!r}."
        )
    elif isinstance(rows, Rows) and rows.ahead:
        return site.index
    else:
        depth, latest = adapter.depth, site.index - 1
        wide = [layer for layer in range(latest + 1) if adapter.sees_images(layer)]
        own = wide[-1] if wide else latest
    layer = own if rows.layer is None else rows.layer + depth * (rows.layer < 0)
    if not 0 <= layer <= latest:
        raise NeedsError(
            f"{policy} at {stage.site!r} reads the attention of layer {rows.layer}, but allowed are 0 to {latest}:"
            " layers that have run when the stage is reached."
        )
    return layer
