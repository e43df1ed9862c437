"""The cells of a run: every method at every budget, resolved to stages and checked before any weights are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from prunekit.adapter import adapter_for
from prunekit.budget import match_average
from prunekit.errors import BudgetError, PrunekitError
from prunekit.evaluation.experiment import DENSE, Experiment, MethodLike
from prunekit.evaluation.loading import ModelFacts
from prunekit.keep import Keep
from prunekit.plan import Method, Plan, Stage
from prunekit.policy import PruningPolicy
from prunekit.session import prune

__all__ = ["Budget", "Cell", "plan_cells"]

Budget = int | float | None


@dataclass(frozen=True)
class Cell:
    """One row of the results.

    Attributes:
        name: of the method.
        budget: as the experiment writes it; None for the dense model and for methods that run as configured.
        stages: what is pruned where; None where the budget is not reachable, () for the dense model.
        reason: why the budget is not reachable.
    """

    name: str
    budget: Budget
    stages: tuple[Stage, ...] | None
    reason: str = ""

    @property
    def label(self) -> str:
        """For people: the name, and the budget if there is one."""
        if self.budget is None:
            return self.name
        amount = f"{self.budget * 100:g} %" if isinstance(self.budget, float) else f"{self.budget} tokens"
        return f"{self.name} {amount}"


def plan_cells(experiment: Experiment, facts: ModelFacts, images: int) -> list[Cell]:
    """All cells of an experiment, the dense model first.

    Args:
        experiment: what is to be run.
        facts: of the model.
        images: images of a sample; budgets are matched for samples with that many.

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
    visual = (facts.tokens_per_image or 0) * images
    cells = [Cell(DENSE, None, ())]
    for name, method in experiment.methods.items():
        once = name in experiment.fixed or not experiment.budgets
        for budget in [None] if once else experiment.budgets:
            where = f"methods.{name}" if budget is None else f"methods.{name} at budget {budget}"
            try:
                cells.append(_cell(experiment, facts.skeleton, name, method, budget, visual))
            except PrunekitError as error:
                raise type(error)(f"{where}: {error}") from None
    return cells


def _cell(
    experiment: Experiment, skeleton: nn.Module, name: str, method: MethodLike, budget: Budget, visual: int
) -> Cell:
    shape = adapter_for(skeleton).shape
    if budget is None:
        stages = Plan.of(_items(method, None), shape).stages
    else:
        average = budget * visual if isinstance(budget, float) else float(budget)
        if average > visual:
            raise BudgetError(f"{average:g} visual tokens per layer are asked for, but a sample has only {visual}.")
        items = _items(method, average / visual)
        Plan.of(items, shape)  # sites first: an impossible site is not a matter of budgets
        try:
            stages = match_average(method if isinstance(method, Method) else items, average, visual=visual, depth=shape)
        except BudgetError as error:
            if experiment.unreachable == "skip":
                return Cell(name, budget, None, str(error))
            raise BudgetError(f"{error} Write 'unreachable: skip' to leave such rows out.") from None
    _check(stages, skeleton, visual)
    return Cell(name, budget, stages)


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
