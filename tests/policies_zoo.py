"""Every policy and method of `prunekit.policies`, in all its variants, as chains of stages that run without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Literal, get_args, get_origin, get_type_hints

from policies_common import left, random_tokens, row

from prunekit import Keep, Method, PruningPolicy, Selection, Stage, VisualTokens, policies
from prunekit._checks import Checks, check_selection
from prunekit.plan import Shape

__all__ = ["SUBJECTS", "Subject", "Tokens", "run"]

SHAPE = Shape(8, 6, 4)
KEEP = 0.4
SCORE, OTHER = policies.Norm(), policies.TextRelevance()

ARGUMENTS: dict[str, dict[str, Any]] = {
    "FitPrune": {"deletions": (0, 9, 5, 5, 3, 3, 0, 2), "visual": 36},
    "Invert": {"policy": SCORE},
    "Mix": {"policies": [SCORE, OTHER]},
    "PerImage": {"policy": SCORE},
    "Protect": {"policy": SCORE},
    "Sequential": {"items": [policies.DivPrune(0.6), policies.FastV(0.3)]},
    "SpatialQuota": {"policy": SCORE},
    "Union": {"policies": [SCORE, OTHER]},
}
"""What has no default."""

CHANGES: dict[str, dict[str, Any]] = {
    "DART(variant='released')": {"keep": 16},
    "Duplication(released=True)": {"taken": 1},
    "PruMerge(plus=True)": {"keep": None},
}
"""What a variant asks for besides."""

MORE: list[tuple[str, Any, dict[str, Any]]] = [
    ("Diversity(ratio=0.4)", policies.Diversity, {"ratio": 0.4}),
    ("PruMerge()", policies.PruMerge, {}),
    ("PruMerge(variant='released') that decides", policies.PruMerge, {"variant": "released"}),
    ("PruMerge(plus=True, variant='released')", policies.PruMerge, {"plus": True, "variant": "released"}),
    ("SparseVLM(retain=64)", policies.SparseVLM, {"retain": 64}),
]
"""Settings that make a difference without being one of a few words."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A chain of stages.

    Attributes:
        stages: with a budget of `KEEP`, or what the policy decides.
        full: with a budget of everything; None where there is no such budget.
    """

    stages: tuple[Stage, ...]
    full: tuple[Stage, ...] | None = None

    @property
    def coupled(self) -> bool:
        return any(stage.policy.coupled for stage in self.stages)

    @property
    def inside(self) -> bool:
        """Whether it prunes inside the encoder, where a row is an image and never empty."""
        return any(stage.where.kind in ("vision", "connector") for stage in self.stages)

    @property
    def waits(self) -> bool:
        return any(stage.policy.waits and stage.keep is None for stage in self.stages)

    @property
    def policies(self) -> tuple[PruningPolicy, ...]:
        return tuple(stage.policy for stage in self.stages)


def _names() -> Iterator[tuple[str, type, dict[str, Any]]]:
    """Each class with its default arguments, and with each other word or flag that its fields allow."""
    for name in policies.__all__:
        cls = getattr(policies, name)
        assert is_dataclass(cls), name
        base = dict(ARGUMENTS.get(name, {}))
        if issubclass(cls, Method) and any(field.name == "keep" for field in fields(cls)):
            base.setdefault("keep", KEEP)
        yield name, cls, base
        hints = get_type_hints(cls)
        for field in fields(cls):
            hint = hints[field.name]
            words = get_args(hint) if get_origin(hint) is Literal else (True, False) if hint is bool else ()
            for word in words:
                if word != field.default:
                    label = f"{name}({field.name}={word!r})"
                    yield label, cls, base | {field.name: word} | CHANGES.get(label, {})


def _subject(make: Callable[..., Any], arguments: dict[str, Any]) -> Subject:
    thing = make(**arguments)
    if isinstance(thing, Method):
        full = make(**arguments | {"keep": 1.0}).stages_of(SHAPE) if arguments.get("keep") == KEEP else None
        return Subject(thing.stages_of(SHAPE), full)
    site = {"vision": "vision.0", "decoder": "decoder.2"}.get(thing.sites[-1], thing.sites[-1])
    if not thing.needs_keep:
        return Subject((Stage(site, thing),))
    halves = thing.sites == ("vision",)  # one step of merging reaches no further
    return Subject((Stage(site, thing, Keep(ratio=0.6 if halves else KEEP)),), (Stage(site, thing, Keep(ratio=1.0)),))


SUBJECTS = {label: _subject(cls, arguments) for label, cls, arguments in (*_names(), *MORE)}


class Tokens:
    """What each stage of a chain sees: fresh random values for each, of the tokens that the stages before left."""

    def __init__(
        self, subject: Subject, counts: tuple[int, ...], grid: tuple[int, int] | None = None, seed: int = 0
    ) -> None:
        texts = tuple(6 - number % 3 for number in range(len(counts)))
        self.whole = [
            near(
                random_tokens(
                    counts, needs=stage.policy.needs, grid=grid, seed=100 * seed + number, heads=3, text=texts
                )
            )
            for number, stage in enumerate(subject.stages)
        ]

    def map(self, change: Any) -> Tokens:
        """The same with something changed."""
        changed = object.__new__(Tokens)
        changed.whole = [change(tokens) for tokens in self.whole]
        return changed

    def alone(self, number: int) -> Tokens:
        return self.map(lambda tokens: row(tokens, number))


def near(tokens: VisualTokens) -> VisualTokens:
    """The same with states of which some pairs are alike and some are not: cosines around 0.8."""
    return replace(tokens, hidden=1 + tokens.hidden / 2)


def run(subject: Subject, tokens: Tokens) -> list[tuple[VisualTokens, Selection, tuple[int, ...]]]:
    """Run the stages as a session would: what each saw, answered, and how many each row kept. Answers are checked."""
    memory: dict[str, Any] = {}
    found: list[tuple[VisualTokens, Selection, tuple[int, ...]]] = []
    for stage, whole in zip(subject.stages, tokens.whole, strict=True):
        seen = replace(whole, memory=memory)
        if found:
            before, selection, counts = found[-1]
            numbers = before.source.gather(1, selection.kept.clamp(min=0)).masked_fill(selection.kept < 0, -1)
            seen = left(seen, numbers, counts)
        selection = stage.policy.select(seen, stage.keep)
        counts = check_selection(stage, seen, selection, Checks())
        found.append((seen, selection.trimmed(max(counts)), counts))
    return found
