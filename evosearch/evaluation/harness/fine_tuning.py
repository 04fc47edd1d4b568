"""Fine-tuning of a merged model on the documents that a search used, as a baseline.

    minimize  − Σ_t w_t · mean_i log p(right answer of item i of task t)        w_t weight of the task in the suite

AdamW (Loshchilov & Hutter 2019) with β = (0.9, 0.98), no weight decay, at a rate of 3·10⁻⁴ for all weights of a small
model and 2·10⁻⁴ for LoRA factors, which falls linearly to zero over the last three eighths of the steps. The
minibatches are fixed and have about 15 documents of each task, all of them of a smaller one: the division of gradient
steps, in which the largest task has each document once. Each epoch runs through them in a random order. A step takes
three item evaluations for each item, a forward and a backward pass. The weights after a quarter, a half and all of the
steps are scored, and the best are kept, as a search chooses among its finalists.

With one machine, number of threads and seed, the result is always the same.
"""

import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evosearch.errors import CandidateError
from evosearch.evaluation.engine.gradient import differentiate
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodPlan, lay_out
from evosearch.evaluation.engine.trainable import Form, Trainable, trainable
from evosearch.evaluation.harness.item_fitness import ItemFitness
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.statistics.gradient_steps import gradient_steps
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import ItemBatch, ScoreCard, TrainingCard

RATES: dict[Form, float] = {"full": 3e-4, "lora": 2e-4}
BETAS = (0.9, 0.98)
DECAY = 0.375  # fraction of the steps, at the end, in which the rate falls to zero
DOCUMENTS = 15  # of each task in a minibatch
COST = 3  # item evaluations of a step for each of its items
CHECKPOINTS = (0.25, 0.5, 1.0)  # fractions of the steps after which the weights are scored


@dataclass(frozen=True)
class TrainingBatch:
    """One minibatch, ready for backward passes.

    Attributes:
        plan: The requests for the right answers.
        owners: (requests,) item of each request.
        fitness: The items' log-probabilities.
        shares: (items,) weight of each item in the objective; 0 for items without a right answer.
        cost: Item evaluations of one step.
    """

    plan: LoglikelihoodPlan
    owners: tuple[int, ...]
    fitness: ItemFitness
    shares: Tensor
    cost: int

    def values(self, lls: Tensor, margins: Tensor) -> Tensor:
        """Return (items,) terms of the objective."""
        values = torch.cat(list(self.fitness(lls, margins).values()))
        return torch.where(self.shares > 0, values, 0.0) * self.shares


def fine_tune(
    scorer: Scorer, model: Any, batch: ItemBatch, items: int, seed: int, scored: Sequence[ItemBatch]
) -> TrainingCard:
    """Fine-tune a model, score it, and restore it, except for the weights of a small model.

    Args:
        scorer: Scores models of this kind.
        model: A transformers model in evaluation mode, on the device to run on.
        batch: The documents to train on.
        items: Budget in item evaluations.
        seed: Seed of the minibatches, their order and the initial LoRA.
        scored: Batches to score the result on. Among the checkpoints, the best score on the first of them decides.

    Raises:
        CandidateError: No document has a right answer, or the outputs are not finite.
    """
    began = time.perf_counter()
    batches = [_training_batch(scorer, one) for one in minibatches(scorer, batch, seed)]
    order = list(schedule([one.cost for one in batches], items, seed))
    with trainable(model, seed) as trained:
        kept = _train(scorer, model, trained, batches, order, scored[0])
        cards = (kept.card, *(scorer.score(model, one) for one in scored[1:]))
        return TrainingCard(
            form=trained.form,
            parameters=sum(tensor.numel() for tensor in trained.parameters),
            rate=RATES[trained.form],
            steps=len(order),
            kept=kept.step,
            items=sum(batches[index].cost for index in order),
            objective=kept.objective,
            seconds=time.perf_counter() - began,
            cards=cards,
        )


@dataclass(frozen=True)
class _Checkpoint:
    step: int
    card: ScoreCard
    weights: list[Tensor]
    objective: tuple[float, float] = (math.nan, math.nan)  # mean over the first and the last epoch


def _train(
    scorer: Scorer,
    model: Any,
    trained: Trainable,
    batches: Sequence[TrainingBatch],
    order: Sequence[int],
    validation: ItemBatch,
) -> _Checkpoint:
    """Train, and leave the model with the weights of the best checkpoint."""
    rate, steps, seen = RATES[trained.form], len(order), list[float]()
    optimizer = torch.optim.AdamW(trained.parameters, lr=rate, betas=BETAS, weight_decay=0.0)
    stops = {max(1, round(fraction * steps)) for fraction in CHECKPOINTS}
    best: _Checkpoint | None = None
    for step, index in enumerate(order):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (steps - step) / (DECAY * steps))
        seen.append(_step(model, trained, batches[index], optimizer))
        if step + 1 in stops:
            card = scorer.score(model, validation)
            if best is None or _merit(card) > _merit(best.card):
                best = _Checkpoint(step + 1, card, [tensor.detach().clone() for tensor in trained.parameters])
    assert best is not None
    with torch.no_grad():
        for tensor, value in zip(trained.parameters, best.weights, strict=True):
            tensor.copy_(value)
    trained.publish()
    epochs = seen[: len(batches)], seen[-len(batches) :]
    first, last = (sum(epoch) / len(epoch) for epoch in epochs)
    return _Checkpoint(best.step, best.card, best.weights, (first, last))


def _merit(card: ScoreCard) -> float:
    return card.fitness.value if card.score is None else card.score


def _step(model: Any, trained: Trainable, one: TrainingBatch, optimizer: torch.optim.Optimizer) -> float:
    """Step along the gradient of one minibatch; return its objective."""
    optimizer.zero_grad()
    found = differentiate(model, one.plan, one.owners, lambda lls, margins: -one.values(lls, margins))
    trained.collect()
    optimizer.step()
    trained.publish()
    return -float(found.values.sum())


def minibatches(scorer: Scorer, batch: ItemBatch, seed: int) -> tuple[ItemBatch, ...]:
    """Divide the documents of scored tasks into minibatches, each with as many documents of every task."""
    trained = trained_on(scorer.suite, batch)
    largest = max(map(len, trained.sets))
    each = math.ceil(largest / max(1, round(largest / DOCUMENTS)))  # the last minibatch repeats the fewest
    documents = each * len(trained.sets)
    return gradient_steps(scorer.suite, trained, documents, shards=1, hold_back=0.0, seed=seed).batches


def trained_on(suite: Suite, batch: ItemBatch) -> ItemBatch:
    """Return the items of a batch that have right answers to train on."""
    scoring = {task.name for task in suite.scoring}
    return ItemBatch(batch.split, tuple(items for items in batch.sets if items.task in scoring and len(items)))


def schedule(costs: Sequence[int], items: int, seed: int) -> Iterator[int]:
    """Yield the minibatch of each step, as many as the budget allows, at least one.

    Args:
        costs: (minibatches,) item evaluations of one step.
        items: Budget in item evaluations.
        seed: Seed of the order.
    """
    draw, left, first = random.Random(seed), items, True  # noqa: S311 - a seeded stream, not a secret
    while True:
        for index in draw.sample(range(len(costs)), len(costs)):
            if left < costs[index] and not first:
                return
            left, first = left - costs[index], False
            yield index


def _training_batch(scorer: Scorer, batch: ItemBatch) -> TrainingBatch:
    fitness = scorer.frozen_for(batch, "gold_logprob").item_fitness("gold_logprob")
    counts = [task.count for task in fitness.tasks]
    zeros = torch.zeros(len(fitness.requests), dtype=torch.float64)
    known = [~values.isnan() for values in fitness(zeros, zeros).values()]
    if not any(bool(one.any()) for one in known):
        raise CandidateError("train", "no document of the search split has a right answer to train on")
    shares = [
        task.share.weight * own.double() / max(1, int(own.sum()))
        for task, own in zip(fitness.tasks, known, strict=True)
    ]
    plan = lay_out(fitness.requests, scorer.options)
    return TrainingBatch(plan, tuple(fitness.owners.tolist()), fitness, torch.cat(shares), COST * sum(counts))
