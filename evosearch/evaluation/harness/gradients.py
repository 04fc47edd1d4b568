"""Gradient of a batch's fitness in a model's weights: the weighted sum of its items' values, differentiated."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evosearch.evaluation.engine import gradient
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodPlan
from evosearch.evaluation.engine.score_options import Mode
from evosearch.evaluation.harness.item_fitness import ItemFitness
from evosearch.evaluation.types import Column, Tokens


@dataclass(frozen=True)
class ItemValues:
    """The fitness of all items, and the work done."""

    values: Mapping[str, Column]  # task → (items,)
    tokens: Tokens
    mode: Mode | None  # None without requests


def differentiate(
    model: Any, plan: LoglikelihoodPlan, fitness: ItemFitness, weights: Mapping[str, float]
) -> ItemValues:
    """Add the gradient of Σ_t weights[t] · Σ_i g_ti to the `grad` of every parameter that requires it.

    Args:
        model: A causal transformers model in evaluation mode.
        plan: A plan of the fitness's requests.
        fitness: The fitness g of items.
        weights: Task → weight of each of its items.

    Raises:
        CandidateError: See `gradient.differentiate`.
    """

    def weighted(lls: Tensor, margins: Tensor) -> Tensor:
        return torch.cat([weights[task] * own for task, own in fitness(lls, margins).items()])

    if not plan.requests:
        return ItemValues({}, Tokens(), None)
    found = gradient.differentiate(model, plan, fitness.owners.tolist(), weighted)
    values = fitness(torch.from_numpy(found.lls), torch.from_numpy(found.margins))
    return ItemValues({task: own.numpy() for task, own in values.items()}, found.tokens, found.mode)
