"""What is known of each method: read from its class, found by running it, and stored by the parity tests."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import cache, cached_property
from typing import Any

import torch
from page_parts import ROOT, code, quietly

from prunekit import policies as found
from prunekit import prune
from prunekit.adapter import adapter_for
from prunekit.budget import average_tokens
from prunekit.compatibility import Compatible, buildable, compatibility
from prunekit.errors import BudgetError, UnsupportedModelError
from prunekit.models import tiny
from prunekit.models.tiny.builders import BUILDERS, tiny_random
from prunekit.needs import Needs
from prunekit.plan import Method, Shape, Stage
from prunekit.policy import PruningPolicy
from prunekit.scenes import scene
from prunekit.selection import Selection
from prunekit.tokens import VisualTokens

ROWS = {
    "cls": "attention of [CLS]",
    "visual": "attention inside the encoder",
    "image": "attention of the visual tokens",
    "last": "attention of the last token",
    "text": "attention of the text",
    "instruction": "attention of the instruction",
}
STATES = {"hidden": "features", "key": "keys", "value": "values", "embedding": "embeddings", "normed": "normed states"}
BY_DATA = "by the data"
SHAPE, VISUAL = Shape(depth=32, encoder=24, features=22), 576  # LLaVA-1.5-7B


class Watched(PruningPolicy):
    """Decides as another policy does, and notes whether kept tokens change."""

    def __init__(self, policy: PruningPolicy, merging: list[bool]) -> None:
        self.policy, self.merging = policy, merging
        self.needs, self.sites, self.coupled = policy.needs, policy.sites, policy.coupled
        self.needs_keep = policy.needs_keep

    def planned(self, total: int) -> int | None:
        return self.policy.planned(total)

    def select(self, tokens: VisualTokens, keep: Any) -> Selection:
        selection = self.policy.select(tokens, keep)
        self.merging.append(selection.merges)
        return selection


class Facts:
    """One method. Stages are those on a language model of 32 layers, with an encoder of 24 and 576 visual tokens."""

    def __init__(self, cls: type[Method]) -> None:
        self.cls, self.name, self.reference = cls, cls.__name__, cls.reference
        self.example: Any = cls.example(SHAPE)
        self.stages: tuple[Stage, ...] = self.example.stages_of(SHAPE)
        self.counts = [stage.count(VISUAL) for stage in self.stages]
        self.needs = [stage.policy.needs for stage in self.stages]
        text = inspect.cleandoc(cls.__doc__ or "")
        text, _, self.differs = text.partition("Differs from the reference: ")
        self.idea, _, arguments = text.partition("Args:\n")
        entries = re.finditer(r"^    (\w+): (.*?)(?=^    \w+: |\Z)", arguments, re.DOTALL | re.MULTILINE)
        self.arguments = {entry[1]: " ".join(entry[2].split()) for entry in entries}
        assert list(self.arguments) == [field.name for field in fields(self.example)], f"Args of {self.name}"

    @property
    def page(self) -> str:
        return f"methods/{self.name.lower()}.md"

    @property
    def text_aware(self) -> bool:
        """Whether the question has a say."""
        rows = [row.queries for needs in self.needs for row in needs.attention]
        return bool({"last", "text", "instruction"} & {*rows}) or any(needs.of_text for needs in self.needs)

    @property
    def knob(self) -> str:
        """The parameter that a budget turns, and its default."""
        name = self.cls.knob
        value = getattr(self.example, name, None) if name else None
        return f"`{name}={value}`" if value is not None else f"`{name}`" if hasattr(self.example, name) else "none"

    @property
    def average(self) -> float | None:
        """Visual tokens in a decoder layer; None where the data decide."""
        try:
            return average_tokens(self.example, VISUAL, SHAPE)
        except BudgetError:
            return None

    @cached_property
    def merges(self) -> bool:
        """Whether kept tokens change, seen on the bundled model."""
        model, inputs = bundled()
        merging: list[bool] = []
        shape = adapter_for(model).shape
        stages = self.cls.example(shape).stages_of(shape)
        watched = [Stage(stage.site, Watched(stage.policy, merging), stage.keep) for stage in stages]
        with quietly(), torch.no_grad(), prune(model, *watched):
            model(**inputs)
        return any(merging)

    @cached_property
    def cases(self) -> dict[str, dict[str, Any]]:
        """What the parity tests found, by folder and case: `vscan_stage1` and `vscan_stage2` are of `VScan`."""
        stored = parity()["methods"]
        own = [folder for folder in stored if folder.partition("_")[0] == self.name.lower()]
        return {f"{folder}/{case}": facts for folder in own for case, facts in stored[folder].items()}


def reads(needs: Iterable[Needs]) -> str:
    """What is read, in words."""
    words: dict[str, None] = {}
    for each in needs:
        words |= dict.fromkeys(ROWS[row.queries] for row in each.attention)
        words |= dict.fromkeys(
            STATES[state.kind] + {"visual": "", "text": " of the text", "cls": " of [CLS]"}[state.of]
            for state in each.all_states
        )
        words |= dict.fromkeys(
            ["states of the text"] * each.text
            + [f"`side[{name!r}]`" for name in each.side]
            + ["patches"] * each.patches
        )
    return ", ".join(words) or "no attention"


def left(count: int | None) -> str:
    """How many tokens a stage leaves."""
    return BY_DATA if count is None else str(count)


def case_row(name: str, case: dict[str, Any]) -> list[str]:
    """What came of a golden case."""
    close = f"{case['close']}, by {case['error']:.1e}" if case["close"] else ""
    reasons = dict.fromkeys(case["skipped"].values())
    skipped = "; ".join(f"{code(o for o, why in case['skipped'].items() if why == r)}: {r}" for r in reasons)
    which = f"{case['repo']} `{case['commit'][:7]}`"
    return [f"`{name}`", which, case["variant"] or "only", str(case["equal"]), close, skipped]


@cache
def parity() -> Any:
    """What `make parity` stored."""
    return json.loads((ROOT / "benchmarks/results/parity.json").read_text(encoding="utf-8"))


@cache
def methods() -> tuple[Facts, ...]:
    """Every method that stands for itself, in alphabetical order."""
    classes = [getattr(found, name) for name in sorted(found.__all__, key=str.lower)]
    return tuple(Facts(cls) for cls in classes if issubclass(cls, Method) and buildable(cls))


@cache
def bundled() -> tuple[Any, Any]:
    """The bundled model, and one of its questions."""
    with quietly():
        model, processor = tiny.load()
    picture = scene(0, split="test", seed=0)
    text = f"USER: <image> {picture.questions[0].text} ASSISTANT:"
    return model, processor(images=picture.pil(), text=text, return_tensors="pt")


@cache
def support() -> tuple[tuple[list[str], dict[str, Compatible]], ...]:
    """Families that serve the same methods, most methods first, and what their tiny random models say of each."""
    groups: dict[tuple[bool, ...], tuple[list[str], dict[str, Compatible]]] = {}
    for name, answers in _families():
        families, _ = groups.setdefault(tuple(bool(each.sites) for each in answers.values()), ([], answers))
        if name not in families:  # two forms of one type
            families.append(name)
    return tuple(groups[key] for key in sorted(groups, key=sum, reverse=True))


def _families() -> Iterator[tuple[str, dict[str, Compatible]]]:
    classes = {each.name: each.cls for each in methods()}
    for name in BUILDERS:
        try:
            with quietly():
                model: Any = tiny_random(name)[0]
                answers = compatibility(model, classes)
        except UnsupportedModelError:
            continue
        words = re.compile(rf"\b{type(model).__name__}\b")
        yield (
            model.config.model_type,
            {key: Compatible(each.sites, words.sub("this model", each.reason)) for key, each in answers.items()},
        )
