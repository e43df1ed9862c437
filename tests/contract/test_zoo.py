"""Every published method on every family: the invariants hold, or it is refused for the reason that was foreseen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import pytest
import torch
from catalogue import FAMILIES, Subject, subject
from invariants import (
    FAR,
    LAYOUTS,
    assert_near,
    check_identity,
    check_rows_alone,
    check_trace,
    generate,
    same_generation,
)
from oracle import Alive, Inputs, latest, masked, placeholders
from torch import Tensor, nn
from zoo import ZOO, Entry

from prunekit import Keep, PruningPolicy, Selection, Stage, VisualTokens, prune
from prunekit.adapter import adapter_for
from prunekit.errors import NeedsError, PrunekitError, ScoresError, SiteError, UnsupportedInputError
from prunekit.patches import Encoded
from prunekit.plan import Plan
from prunekit.selection import merged

QUARTER = Keep(ratio=0.25)
RAGGED = {"batch": 3, "images": (2, 1, 1), "text": (5, 8, 6)}
CASES = [(method, family) for method in ZOO for family in FAMILIES]
Seen = tuple[Stage, VisualTokens, Selection]


@dataclass(frozen=True)
class Watched(PruningPolicy):
    """Another policy, whose answers are noted."""

    policy: PruningPolicy
    stage: Stage
    seen: list[Seen] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("needs", "needs_keep", "sites", "coupled"):
            object.__setattr__(self, name, getattr(self.policy, name))

    def planned(self, total: int) -> int | None:
        return self.policy.planned(total)

    def select(self, tokens: VisualTokens, keep: Keep | None) -> Selection:
        selection = self.policy.select(tokens, keep)
        self.seen.append((self.stage, tokens, selection))
        return selection


def stages(model: Subject, method: Entry, keep: Keep = QUARTER) -> tuple[Stage, ...]:
    return Plan.of(method.build(keep), adapter_for(model.model).shape).stages


def foreseen(model: Subject, method: Entry) -> bool:
    """Whether the model has what the method was said to need."""
    adapter = adapter_for(model.model)
    there = {
        "encoder": adapter.vision_tower is not None,
        "cls": adapter.vision_tower is not None and adapter.has_cls,
        "vision": bool(adapter.vision_sites),
        "connector": adapter.connector_site,
        "patches": adapter.vision_tower is not None and not adapter.packed and adapter.merge == 1,
    }
    return all(there[name] for name in method.asks if name in there)


def runs(model: Subject, method: Entry, inputs: Inputs) -> bool:
    """Whether the method runs on these inputs; what a model cannot refuse before it sees them must be foreseen."""
    try:
        with prune(model.model, *method.build(QUARTER)):
            model.model(**inputs)
    except refusals(model, method):
        return False
    return True


def refusals(model: Subject, method: Entry) -> tuple[type[PrunekitError], ...]:
    adapter = adapter_for(model.model)
    if "mask" in method.asks and not adapter.masked_encoder and not adapter.packed:
        return (UnsupportedInputError,)  # images keep different numbers of tokens in one batch
    named = ("vision_feature_layer", "vision_feature_layers")  # the plural is ViP-LLaVA's before transformers 5.23
    joined = any(isinstance(getattr(model.model.config, name, None), list) for name in named)
    if "plain" in method.asks and (adapter.merge > 1 or joined):
        return (NeedsError,)  # [CLS] is narrower than the features
    needs = [(stage.where.index, rows) for stage in stages(model, method) for rows in stage.policy.needs.attention]
    ahead = [layer for layer, rows in needs if rows.ahead and not adapter.sees_images(layer)]
    before = [n for n, r in needs if not (r.of_vision or r.ahead or any(map(adapter.sees_images, range(n))))]
    return (ScoresError,) if ahead or before else ()  # a window that does not reach the images


@pytest.mark.parametrize(("name", "family"), CASES)
@torch.no_grad()
def test_invariants(name: str, family: str) -> None:
    model, method = subject(family, "sdpa"), ZOO[name]
    if not foreseen(model, method):
        with pytest.raises((NeedsError, SiteError)):
            prune(model.model, *method.build(QUARTER))
        return
    inputs = model.make_inputs(**RAGGED)
    if not runs(model, method, inputs):
        inputs = model.make_inputs()  # one image, all of which a window sees
        if not runs(model, method, inputs):
            return
    check_oracle(model, method, inputs)
    plan = stages(model, method)
    if len(inputs["input_ids"]) > 1:
        check_rows_alone(model, plan, inputs, records=len(plan))
    if method.identity:
        check_identity(model, stages(model, method, Keep(ratio=1.0)), model.make_inputs(**LAYOUTS["padded"]))


@pytest.mark.parametrize("name", ZOO)
@torch.no_grad()
def test_eager_attention(name: str) -> None:
    model = subject("llava", "eager")
    check_oracle(model, ZOO[name], model.make_inputs(**RAGGED), steps=8)


def check_oracle(model: Subject, method: Entry, inputs: Inputs, steps: int = 3) -> None:
    """Pruning equals masking, and merging equals writing the merged states where they are kept."""
    plan = stages(model, method)
    watched = [Stage(stage.site, Watched(stage.policy, stage), stage.keep) for stage in plan]

    def seen() -> list[Seen]:
        """What policies saw and answered since the last time."""
        found = [entry for stage in watched for entry in stage.policy.seen]  # type: ignore[attr-defined]
        for stage in watched:
            stage.policy.seen.clear()  # type: ignore[attr-defined]
        return found

    with prune(model.model, *watched) as session:
        logits = model.model(**inputs).logits
        first, at_first = latest(session.trace, len(plan)), seen()
        out = generate(model.model, inputs, steps)  # numbers positions of padded rows otherwise, and may keep others
        second, at_second = latest(session.trace, len(plan)), seen()
    check_trace(first, inputs, model)
    check_counts(plan, first)
    plain = model.dense(**inputs).logits
    alive = Alive(first, inputs, model.family)
    with masked(model.dense, alive, model.family), overwritten(model, at_first, inputs):
        expected = model.dense(**inputs).logits
    with masked(model.dense, Alive(second, inputs, model.family), model.family), overwritten(model, at_second, inputs):
        expected_out = generate(model.dense, inputs, steps)
    final = alive.final()
    assert_near(logits[final], expected[final], "prefill")
    same_generation(out, expected_out, "generate")
    dropped = any(int((record.kept >= 0).sum()) < sum(record.visual) for record in first)
    assert not dropped or (logits - plain)[:, -1].abs().max() > FAR, "no power: pruned and dense do not differ"


def check_counts(plan: tuple[Stage, ...], records: list[Any]) -> None:
    """Every row keeps as many tokens as the plan says, where it says that."""
    for stage, record in zip(plan, records, strict=True):
        if stage.where.part == 0:
            continue  # budgets there are those of an image
        for row, total in zip(record.kept, record.visual, strict=True):
            planned = stage.count(total)
            assert planned is None or int((row >= 0).sum()) == planned, f"{stage.site} keeps other numbers"


@contextmanager
def overwritten(model: Subject, seen: list[Seen], inputs: Inputs) -> Iterator[None]:
    """Write what was merged into a plain model's states, where a stage would have them."""
    adapter, family = adapter_for(model.dense), model.family
    with ExitStack() as stack:
        for stage, tokens, selection in seen:
            if not selection.merges:
                continue
            if stage.where.part:
                columns = columns_of(tokens, inputs, model)
                length = inputs["input_ids"].shape[1]
                layer = model.dense.get_submodule(family.decoder_layers)[stage.where.index]
                hook: Any = before_layer(tokens, selection, columns, length)
                stack.callback(layer.register_forward_pre_hook(hook, with_kwargs=True).remove)
            elif stage.site == "connector":
                assert adapter.projector is not None
                hook = before_projector(tokens, selection, groups_of(model, inputs))
                stack.callback(adapter.projector.register_forward_pre_hook(hook).remove)
            else:
                layer = model.dense.get_submodule(family.encoder_layers)[stage.where.index]
                hook = behind_layer(tokens, selection, groups_of(model, inputs), family.special)
                stack.callback(layer.register_forward_hook(hook, prepend=True).remove)  # before its output is recorded
        yield


def columns_of(tokens: VisualTokens, inputs: Inputs, model: Subject) -> Tensor:
    """Columns of the tokens that a policy saw, [batch, visual]; the first padding one for those that are none."""
    visual = placeholders(inputs, model.family)
    order = (~visual).long().argsort(dim=1, stable=True)
    return order.gather(1, tokens.source.clamp(min=0))


def groups_of(model: Subject, inputs: Inputs) -> Tensor:
    """The patches that tokens are made of, [tokens, patches of a token]: of an image, or of all where it is packed."""
    adapter, encoded = adapter_for(model.dense), Encoded("image", dict(inputs))
    if adapter.packed:
        return adapter.patches_of_tokens(len(inputs["pixel_values"]), encoded)
    vision = model.dense.config.vision_config
    size, patch = (x if isinstance(x, int) else x[0] for x in (vision.image_size, vision.patch_size))
    return adapter.patches_of_tokens((size // patch) ** 2, encoded)


def written(states: Tensor, index: Tensor, tokens: VisualTokens, selection: Selection) -> Tensor:
    """States [columns, dim] with merged tokens; `index` [rows, visual, columns of a token]."""
    states = states.clone()
    for row in range(len(index)):
        own = states[index[row]]  # [visual, columns of a token, dim]
        made = merged(own.flatten(1)[None], one(selection, row))[0].unflatten(-1, own.shape[1:])
        for slot, kept in enumerate(selection.kept[row].tolist()):
            if kept >= 0:
                assert tokens.valid[row, kept]
                states[index[row, kept]] = made[slot]
    return states


def one(selection: Selection, row: int) -> Selection:
    """One row of a selection."""
    names = ("kept", "owner", "weight", "mix", "extra")
    values = {name: getattr(selection, name) for name in names}
    return Selection(**{name: None if value is None else value[row : row + 1] for name, value in values.items()})


def behind_rows(index: Tensor, length: int) -> Tensor:
    """Columns within rows [rows, ...] as columns of all rows one after the other."""
    start = length * torch.arange(len(index))
    return index + start.view(-1, *[1] * (index.ndim - 1))


def before_layer(tokens: VisualTokens, selection: Selection, columns: Tensor, length: int) -> Any:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        if hidden.shape[1] != length:
            return None  # a token that is decoded
        index = behind_rows(columns[..., None], length)
        hidden = written(hidden.flatten(0, 1), index, tokens, selection).view_as(hidden)
        return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

    return hook


def before_projector(tokens: VisualTokens, selection: Selection, groups: Tensor) -> Any:
    def hook(module: nn.Module, args: Any) -> Any:
        features = args[0]
        own = groups if features.shape[1] != len(groups) else torch.arange(len(groups))[:, None]
        index = behind_rows(own[tokens.source.clamp(min=0)], features.shape[1])
        return (written(features.flatten(0, 1), index, tokens, selection).view_as(features), *args[1:])

    return hook


def behind_layer(tokens: VisualTokens, selection: Selection, groups: Tensor, special: int) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        number = tokens.source.clamp(min=0)
        if len(groups) == sum(tokens.total):  # one sequence of all images
            number = number + torch.tensor([0, *accumulate(tokens.total)][:-1])[:, None]
            index = groups[number]
        else:
            index = behind_rows(groups[number] + special, hidden.shape[1])
        hidden = written(hidden.reshape(-1, hidden.shape[-1]), index, tokens, selection).view_as(hidden)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    return hook
