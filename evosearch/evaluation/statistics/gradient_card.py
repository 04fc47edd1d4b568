"""Gradient cards from the fitness of items. Pure; the formulas are those of `GradientCard`."""

import math
from collections.abc import Mapping

from evosearch.evaluation.statistics.units import units
from evosearch.evaluation.types import Column, Estimate, GradientCard, ItemBatch, Tokens


def item_weights(
    sizes: Mapping[str, int], shares: Mapping[str, float], given: Mapping[str, float] | None
) -> dict[str, float]:
    """Return task → weight v_t of each of its items.

    Args:
        sizes: Task → number of its items in the batch.
        shares: Task → weight w_t in the fitness; weights sum to 1.
        given: The weights of a job, if it has some.
    """
    return {task: shares[task] / size if given is None else given[task] for task, size in sizes.items()}


def gradient_card(
    batch: ItemBatch,
    values: Mapping[str, Column],
    weights: Mapping[str, float],
    gradient: tuple[float, ...],
    tokens: Tokens,
    seconds: Mapping[str, float],
    modes: Mapping[str, str],
) -> GradientCard:
    """Build the gradient card of one candidate on one batch.

    Args:
        batch: The items.
        values: Task → (items,) fitness of each item, in the unit of the suite's fitness.
        weights: Task → weight of each of its items.
        gradient: (dimensions,) gradient of the weighted sum of all values.
        tokens: Token counts of the forward passes.
        seconds: Step → time in seconds.
        modes: loglikelihood → execution mode.
    """
    groups = {items.task: items.groups for items in batch.sets}
    tasks = {task: _estimate(own, groups[task]) for task, own in values.items()}
    total = math.fsum(weights[task] * value for task, own in values.items() for value in own.tolist())
    spread = math.sqrt(sum((weights[task] * one.n * one.stderr) ** 2 for task, one in tasks.items()))
    fitness = Estimate(total, spread, sum(one.n for one in tasks.values()))
    return GradientCard(batch.split, batch.digest, fitness, gradient, tasks, tokens, dict(seconds), dict(modes))


def _estimate(values: Column, groups: tuple[str, ...]) -> Estimate:
    found = units(values, groups)
    return Estimate(found.mean, math.sqrt(found.variance), found.n)
