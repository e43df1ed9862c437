"""From which layer each thing that a policy reads is read, and what a model cannot be asked for."""

from __future__ import annotations

from prunekit._align import Layers
from prunekit.adapter import ModelAdapter
from prunekit.errors import NeedsError
from prunekit.needs import Rows, States
from prunekit.plan import Plan, Stage

__all__ = ["resolve_needs"]


def resolve_needs(plan: Plan, adapter: ModelAdapter) -> Layers:
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
        return _with_keys(stage, site.index, adapter)
    else:
        depth, latest = adapter.depth, site.index - 1
        able = [layer for layer in range(latest + 1) if adapter.keys_of(layer) is not None]
        own = max(filter(adapter.sees_images, able), default=max(able, default=latest))
    layer = own if rows.layer is None else rows.layer + depth * (rows.layer < 0)
    if not 0 <= layer <= latest:
        raise NeedsError(
            f"{policy} at {stage.site!r} reads the attention of layer {rows.layer}, but allowed are 0 to {latest}:"
            " layers that have run when the stage is reached."
        )
    return layer if rows.of_vision else _with_keys(stage, layer, adapter)


def _with_keys(stage: Stage, layer: int, adapter: ModelAdapter) -> int:
    """The decoder layer, if it has attention that can be read."""
    if adapter.keys_of(layer) is not None:
        return layer
    able = [str(each) for each in range(adapter.depth) if adapter.keys_of(each) is not None]
    raise NeedsError(
        f"{type(stage.policy).__name__} at {stage.site!r} reads the attention of decoder layer {layer} of"
        f" {type(adapter.model).__name__}, which is of the kind {adapter.kinds[layer]!r} and has none. Layers with"
        f" attention are {', '.join(able) or 'none'}; the stage has to come after the one it reads (with ahead=True,"
        " right before it)."
    )
