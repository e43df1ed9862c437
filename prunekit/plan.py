"""What is pruned where: sites, `Stage` (a policy at a site with a budget), `Method` and `Plan` (all stages)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, cast

from prunekit.errors import BudgetError, PolicyError, SiteError, nearest
from prunekit.keep import Keep
from prunekit.needs import Needs
from prunekit.policy import PruningPolicy
from prunekit.reference import Reference

__all__ = ["Method", "Plan", "Shape", "Site", "Stage"]

_SITE = re.compile(r"(?P<part>vision|decoder)\.(?P<index>\d+)|connector|input")
_CONNECTOR = 1 << 16  # as a layer of the encoder: after all of them


@dataclass(frozen=True, order=True)
class Site:
    """A place in the model, ordered as the forward pass visits them: the vision encoder, the input, the decoder.

    Attributes:
        part: 0 for `vision.<i>` (after encoder layer i) and `connector` (between encoder and projector), 1 for `input`
            (between projector and language model), 2 for `decoder.<i>` (before decoder layer i).
        index: the layer; 0 for `input`, beyond all layers for `connector`.
    """

    part: int
    index: int

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read `vision.<i>`, `connector`, `input` or `decoder.<i>`.

        Raises:
            SiteError: anything else, and `decoder.0`, which is `input`.
        """
        match = _SITE.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            raise SiteError(
                f"{text!r} is no site; sites are 'vision.<i>' (after layer i of the vision encoder), 'connector'"
                " (before the projector), 'input' (before the language model) and 'decoder.<i>' (before decoder layer"
                " i >= 1)."
                f"{_nearest_site(text)}"
            )
        if match["part"] is None:
            return cls(1, 0) if text == "input" else cls(0, _CONNECTOR)
        site = cls(0 if match["part"] == "vision" else 2, int(match["index"]))
        if site == cls(2, 0):
            raise SiteError("'decoder.0' is no site: pruning before the first decoder layer is pruning at 'input'.")
        return site

    @property
    def kind(self) -> str:
        """`vision`, `connector`, `input` or `decoder`."""
        return "connector" if self.index == _CONNECTOR else ("vision", "input", "decoder")[self.part]

    def __str__(self) -> str:
        if self.index == _CONNECTOR:
            return "connector"
        return ("vision.{}", "input", "decoder.{}")[self.part].format(self.index)


def _nearest_site(text: object) -> str:
    word, _, index = str(text).partition(".")
    hint = nearest(word, ("vision", "connector", "input", "decoder"))
    layered = index.isdigit() and ("vision" in hint or "decoder" in hint)
    return hint.replace("'?", f".{index}'?") if layered else hint


@dataclass(frozen=True)
class Stage:
    """One step of a plan: a policy at a site with a budget.

    Attributes:
        site: `vision.<i>`, `connector`, `input` or `decoder.<i>`.
        policy: what decides.
        keep: the budget; None only for policies that decide the number themselves.
    """

    site: str
    policy: PruningPolicy
    keep: Keep | None = None

    def __post_init__(self) -> None:
        Site.parse(self.site)
        if not isinstance(self.policy, PruningPolicy):
            given = f"the class {self.policy.__name__}" if isinstance(self.policy, type) else repr(self.policy)
            raise PolicyError(
                f"Stage({self.site!r}): the policy must be an instance of a PruningPolicy, given {given}."
            )
        if self.keep is None and self.policy.needs_keep:
            raise BudgetError(
                f"Stage({self.site!r}): {type(self.policy).__name__} needs a budget, e.g. Keep(ratio=0.25)."
            )

    @cached_property
    def where(self) -> Site:
        """The site, parsed."""
        return Site.parse(self.site)

    @cached_property
    def needs(self) -> Needs:
        """What the policy reads; asked of it once."""
        return self.policy.needs

    def count(self, total: int) -> int | None:
        """Tokens kept of `total` original ones, None where that depends on the data."""
        return self.policy.planned(total) if self.keep is None else self.keep.count(total)


@dataclass(frozen=True)
class Shape:
    """How many layers a model has.

    Attributes:
        depth: decoder layers of the language model.
        encoder: layers of the vision encoder; 0 where they are out of reach.
        features: the encoder layer whose output becomes the visual tokens.
    """

    depth: int
    encoder: int = 0
    features: int = -1


class Method(ABC):
    """A named method: a frozen dataclass that answers with its stages for a given model.

    A subclass defines `stages`, or `stages_of` where it must know the vision encoder. By convention its field `keep` is
    the budget after the last stage, as an int (tokens), a float (ratio of the original count) or a `Keep`;
    `prunekit.Budget` turns this one knob to match methods with each other.

    Attributes:
        positions: the position ids of kept tokens as published, see `prune(..., positions="published")`.
        reference: where it was published; None for methods of one's own.
        knob: the field that a budget turns. Methods without such a field have the shares of their stages scaled; an
            empty string is for those whose setting must not be touched.
    """

    positions = "original"  # without a type: jsonargparse would lose those of all fields
    reference = cast("Reference | None", None)
    knob = "keep"

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "stages_of" in vars(cls) and "stages" not in vars(cls):
            cls.stages = _ask_for_shape  # type: ignore[assignment, method-assign]  # one of the two is enough

    @abstractmethod
    def stages(self, depth: int) -> tuple[Stage, ...]:
        """The stages of this method on a language model of `depth` decoder layers.

        Raises:
            SiteError: they depend on the vision encoder.
        """

    def stages_of(self, shape: Shape) -> tuple[Stage, ...]:
        """The stages of this method on a model of this shape."""
        return self.stages(shape.depth)

    @classmethod
    def example(cls, shape: Shape) -> Method:
        """One that works on a model of this shape, to try or to show: with the default arguments, where these do."""
        return cls()


def _ask_for_shape(method: Method, depth: int) -> tuple[Stage, ...]:
    raise SiteError(
        f"The stages of {type(method).__name__} depend on the vision encoder: ask stages_of(Shape({depth}, ...))."
    )


@dataclass(frozen=True)
class Plan:
    """Stages in the order of the forward pass, checked against each other."""

    stages: tuple[Stage, ...]

    @classmethod
    def of(cls, items: Sequence[Stage | Method], shape: Shape | int) -> Plan:
        """Resolve stages and methods for a model of this shape, or with as many decoder layers.

        Raises:
            PolicyError: an item is neither a stage nor a method.
            SiteError: two stages at one site, stages not in the order of the forward pass, or a layer beyond the depth.
            BudgetError: a later stage is asked to keep more than an earlier one leaves.
        """
        shape = Shape(shape) if isinstance(shape, int) else shape
        depth, stages = shape.depth, list[Stage]()
        for item in items:
            stages.extend(_resolve(item, shape))
        for stage in stages:
            if stage.where.part == 2 and stage.where.index >= depth:
                raise SiteError(
                    f"{stage.site!r}: the language model has {depth} layers; allowed are 'decoder.1' to"
                    f" 'decoder.{depth - 1}'."
                )
        for before, after in pairwise(stages):
            if before.where == after.where:
                raise SiteError(f"Two stages at {after.site!r}; a site takes one stage: combine them into one policy.")
            if before.where > after.where:
                raise SiteError(
                    f"Stage {after.site!r} comes after {before.site!r}, but the forward pass reaches it first; list"
                    " stages in the order of the forward pass: vision, connector, input, decoder."
                )
            if _asks_more(after.keep, before.keep):
                raise BudgetError(
                    f"Stage {after.site!r} is to keep {after.keep}, but {before.site!r} before it leaves only"
                    f" {before.keep};"
                    " ratios refer to the original number of tokens."
                )
        return cls(tuple(stages))

    def check(self, total: int) -> tuple[int | None, ...]:
        """Tokens kept by each stage of a sample with `total` visual tokens.

        Raises:
            BudgetError: a stage keeps more tokens than there are, or than the stage before leaves.
        """
        counts: list[int | None] = []
        alive, site = total, "the model's input"
        for stage in self.stages:
            count = stage.count(total)
            if count is not None and count > alive:
                raise BudgetError(
                    f"Stage {stage.site!r} is to keep {count} visual tokens ({stage.keep}) but {site} leaves only"
                    f" {alive}."
                )
            counts.append(count)
            if count is not None:
                alive, site = count, repr(stage.site)
        return tuple(counts)


def _asks_more(after: Keep | None, before: Keep | None) -> bool:
    """Whether `after` keeps more than `before` of any number of tokens; unknown for a ratio and a number."""
    if after is None or before is None:
        return False
    if not after.power == before.power == after.times == before.times == 1:
        return False
    if after.tokens is not None and before.tokens is not None:
        return after.tokens > before.tokens
    return after.ratio is not None and before.ratio is not None and after.ratio > before.ratio


def _resolve(item: Any, shape: Shape) -> tuple[Stage, ...]:
    if isinstance(item, Stage):
        return (item,)
    if isinstance(item, Method):
        return item.stages_of(shape)
    hint = (
        " Put a policy into a Stage: Stage('input', policy, Keep(ratio=0.25))."
        if isinstance(item, PruningPolicy)
        else ""
    )
    raise PolicyError(f"{item!r} is neither a Stage nor a Method.{hint}")
