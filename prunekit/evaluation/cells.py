"""The cells of a run: every method at every budget, resolved to stages and checked before any weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import nn

from prunekit.adapter import adapter_for
from prunekit.budget import Budget, CostModel, achieved
from prunekit.errors import BudgetError, PrunekitError, UnsupportedModelError
from prunekit.evaluation.experiment import DENSE, Experiment, MethodLike
from prunekit.evaluation.loading import ModelFacts
from prunekit.keep import Keep
from prunekit.plan import Method, Plan, Shape, Stage
from prunekit.policy import PruningPolicy
from prunekit.session import prune

__all__ = ["Amount", "Cell", "amount_label", "plan_cells"]

Amount = int | float | str | None
"""A budget as results write it: a number is an average, a text such as `flops=0.3` another measure."""

_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Cell:
    """One row of the results.

    Attributes:
        name: of the method.
        budget: as the experiment writes it; None for the dense model and for methods that run as configured.
        stages: what is pruned where; None where the budget is not reachable, () for the dense model.
        reason: why the budget is not reachable.
        achieved: what the stages cost by every measure, from shapes; empty where the data decide.
    """

    name: str
    budget: Amount
    stages: tuple[Stage, ...] | None
    reason: str = ""
    achieved: dict[str, float] = field(default_factory=dict, hash=False)

    @property
    def label(self) -> str:
        """For people: the name, and the budget if there is one."""
        return f"{self.name} {amount_label(self.budget)}".strip()


def amount_label(budget: Amount) -> str:
    """A budget for people."""
    if budget is None:
        return ""
    return (Budget.parse(budget) if isinstance(budget, str) else Budget.of(budget)).label


@dataclass(frozen=True)
class _Sample:
    """What budgets are matched for.

    Attributes:
        model: its costs; only its shape where they are not known.
        visual: visual tokens; 0 where they depend on the image.
        text: other tokens.
    """

    model: CostModel | Shape
    visual: int
    text: int

    def achieved(self, stages: Sequence[Stage]) -> dict[str, float]:
        try:
            return achieved(stages, self.model, visual=self.visual, text=self.text) if self.visual else {}
        except BudgetError:
            return {}  # the data decide


def plan_cells(experiment: Experiment, facts: ModelFacts, images: int, text: int = 0) -> list[Cell]:
    """All cells of an experiment, the dense model first.

    Args:
        experiment: what is to be run.
        facts: of the model.
        images: images of a sample; budgets are matched for samples with that many.
        text: other tokens of a sample; budgets in FLOPs and bytes are matched for samples with that many.

    Raises:
        BudgetError: a budget is impossible or, unless these are skipped, out of a method's reach.
        SiteError: a stage is at a site that the model does not have.
        NeedsError: a policy reads something that the model does not have.
    """
    if facts.tokens_per_image is None and experiment.budgets:
        raise BudgetError(
            f"budgets: the number of visual tokens of {facts.name} depends on the image, so that methods cannot be"
            " matched in advance; leave budgets out and give every method its own `keep`."
        )
    sample = _Sample(_costs(experiment, facts), (facts.tokens_per_image or 0) * images, text)
    cells = [Cell(DENSE, None, (), achieved=sample.achieved(()))]
    for name, method in experiment.methods.items():
        once = name in experiment.fixed or not experiment.budgets
        for budget in [None] if once else experiment.budgets:
            where = f"methods.{name}" if budget is None else f"methods.{name} at budget {budget}"
            try:
                cells.append(_cell(experiment, facts.skeleton, name, method, budget, sample))
            except PrunekitError as error:
                raise type(error)(f"{where}: {error}") from None
    return cells


def _costs(experiment: Experiment, facts: ModelFacts) -> CostModel | Shape:
    try:
        return CostModel.of(facts.skeleton, _BYTES[experiment.model.dtype])
    except UnsupportedModelError:  # of its language model no closed form is known: averages work all the same
        return adapter_for(facts.skeleton).shape


def _cell(
    experiment: Experiment,
    skeleton: nn.Module,
    name: str,
    method: MethodLike,
    budget: Budget | int | float | None,
    sample: _Sample,
) -> Cell:
    shape = adapter_for(skeleton).shape
    if budget is None:
        stages = Plan.of(_items(method, None), shape).stages
        _check(stages, skeleton, sample.visual)
        return Cell(name, None, stages, achieved=sample.achieved(stages))
    wanted, amount = Budget.of(budget), str(budget) if isinstance(budget, Budget) else budget
    wanted.check(sample.model, visual=sample.visual, text=sample.text)
    items = _items(method, 1.0)
    Plan.of(items, shape)  # sites first: an impossible site is not a matter of budgets
    try:
        turned = method if isinstance(method, (Method, PruningPolicy)) else items
        solved = wanted.solve(turned, sample.model, visual=sample.visual, text=sample.text)
    except BudgetError as error:
        if experiment.unreachable == "skip":
            return Cell(name, amount, None, str(error))
        raise BudgetError(f"{error} Write 'unreachable: skip' to leave such rows out.") from None
    _check(solved.stages, skeleton, sample.visual)
    return Cell(name, amount, solved.stages, achieved=solved.achieved)


def _items(method: MethodLike, share: float | None) -> tuple[Stage | Method, ...]:
    """A method as what a plan is made of; a policy alone becomes one stage at the input."""
    if isinstance(method, Method):
        return (method,)
    if isinstance(method, PruningPolicy):
        if share is None and method.needs_keep:
            raise BudgetError(
                f"{type(method).__name__} alone has no budget of its own;"
                " list it as a stage with 'keep', or give budgets."
            )
        return (Stage("input", method, None if share is None else Keep(ratio=share)),)
    return tuple(method)


def _check(stages: Sequence[Stage], skeleton: nn.Module, visual: int) -> None:
    """Attach the stages to the model without weights: whatever a session would refuse is refused now."""
    with prune(skeleton, *stages) as session:
        session.plan.check(visual)
