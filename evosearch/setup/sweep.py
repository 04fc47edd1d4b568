"""The sweep of scales that fits a budget, and the share of a search that its baselines take."""

from collections.abc import Sequence

from evosearch.evaluation.statistics.gradient_steps import GradientSteps
from evosearch.evaluation.statistics.minibatches import Minibatches
from evosearch.evaluation.types import ItemBatch
from evosearch.search.baselines import SCALES, Baseline
from evosearch.search.sampling import BACKWARD
from evosearch.spec.config import BudgetConfig
from evosearch.spec.spec import SearchSpec

MOST = 1 / 3  # of the candidates' item evaluations: the longest sweep within it is taken, or else the shortest
SWEEPS = (SCALES, (0.2, 0.4, 0.6, 0.8, 1.0), (0.3, 0.6, 1.0))


def scales_of(spec: SearchSpec, full: ItemBatch, minibatches: Minibatches | GradientSteps | None) -> tuple[float, ...]:
    """Return the scales of a search's sweep: those of its spec, or by default as many as fit its budget.

    Args:
        spec: The spec.
        full: The search split.
        minibatches: Its minibatches, if it has any.
    """
    if spec.baselines.scales is not None:
        return spec.baselines.scales
    budget, each = budgeted_items(spec.config.budget, full, minibatches), len(ranked_items(full, minibatches))
    fitting = (scales for scales in SWEEPS if budget is None or len(scales) * each <= MOST * budget)
    return next(fitting, SWEEPS[-1])


def ranked_items(full: ItemBatch, minibatches: Minibatches | GradientSteps | None) -> ItemBatch:
    """Return the items that baselines are scored on: the search split, or the part held back from gradients."""
    return minibatches.ranked if isinstance(minibatches, GradientSteps) else full


def budgeted_items(
    budget: BudgetConfig, full: ItemBatch, minibatches: Minibatches | GradientSteps | None
) -> float | None:
    """Return the item evaluations of candidates that a budget allows, about; None if only time limits them."""
    limits = [float(budget.items)] if budget.items is not None else []
    if budget.candidates is not None:
        parts = [full] if minibatches is None else minibatches.batches
        passes = 1 + BACKWARD if isinstance(minibatches, GradientSteps) else 1
        limits.append(budget.candidates * passes * sum(map(len, parts)) / len(parts))
    return min(limits, default=None)


def share_of_baselines(
    spec: SearchSpec,
    baselines: Sequence[Baseline],
    full: ItemBatch,
    minibatches: Minibatches | GradientSteps | None,
) -> str:
    """Return a sentence on the baselines' part of a search.

    Such as `14 baselines come first: 3,360 item evaluations, 19% of all with the candidates' 14,400`.

    Args:
        spec: The spec.
        baselines: The baselines; those without a recipe are not scored.
        full: The search split.
        minibatches: Its minibatches, if it has any.
    """
    scored = [baseline for baseline in baselines if baseline.recipe is not None]
    taken = len(scored) * len(ranked_items(full, minibatches))
    text = f"{len(scored)} baselines come first: {taken:,} item evaluations"
    budget = budgeted_items(spec.config.budget, full, minibatches)
    if budget:
        text += f", {taken / (taken + budget):.0%} of all with the candidates' {budget:,.0f}"
    sweep = sum(baseline.kind == "scale" for baseline in scored)
    if spec.baselines.scales is None and 0 < sweep < len(SCALES):
        text += f"; {sweep} of {len(SCALES)} default scales, to fit the budget (baselines.scales sets others)"
    return text
