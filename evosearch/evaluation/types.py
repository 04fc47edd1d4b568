"""Data types of an evaluation: item sets, batches and score cards. Imports no torch."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evosearch.recipe.schema import Recipe

SPLITS = ("search", "validation", "test")
FitnessKind = Literal["expected_score", "score", "gold_logprob", "margin", "teachers"]  # see statistics/fitness.py

# Columns other than lm-eval's metrics, whose columns have the metric's name, such as `acc`.
LOGLIKELIHOODS = "loglikelihoods"  # (requests,) summed log-likelihood of each request, in request order
REQUESTS = "requests"  # (items,) number of requests of each item: how to split LOGLIKELIHOODS into items
EXPECTED = "expected"  # (items,) probability of being right, in [0, 1]
MARGIN = "margin"  # (items,) sigmoid of the right answer's lead over its best rival, in [0, 1]
GOLD = "gold_logprob"  # (items,) log-probability of the first right answer, per token if it is a text
TEACHERS = "teachers"  # (items,) minus the divergence from the teacher, in nats per position, see divergence.py
IN_LANGUAGE = "in_language"  # (items,) 1 if the generated text is in the task's language, else 0


def component(metric: str, index: int) -> str:
    """Return the column of one component of a metric with a tuple per item: `word_perplexity[1]`."""
    return f"{metric}[{index}]"


@dataclass(frozen=True)
class ItemSet:
    """Documents of one task that are scored together, in a fixed order.

    `doc_ids` are sorted positions in the lm-eval task's evaluation documents (as in `lm_eval --samples`), or in those
    of the dataset split `documents`; `doc_hashes` are the sha256 of the documents' canonical JSON; documents of one
    group in `groups` are not independent.
    """

    task: str  # the task's name in the suite
    lm_eval_task: str  # the task's name in lm-eval
    doc_ids: tuple[int, ...]
    doc_hashes: tuple[str, ...]
    groups: tuple[str, ...] = ()
    documents: str = ""  # dataset split (train, validation or test); empty for the one that lm-eval evaluates

    @cached_property
    def digest(self) -> str:
        """The sha256 (hex) over task and documents."""
        return _digest(
            [self.task, self.lm_eval_task, self.documents, self.doc_ids, self.doc_hashes, self.groups],
        )

    def __len__(self) -> int:
        return len(self.doc_ids)


@dataclass(frozen=True)
class ItemBatch:
    """The items of one split, or of a minibatch of it, scored together."""

    split: str
    sets: tuple[ItemSet, ...]

    @cached_property
    def digest(self) -> str:
        """The sha256 (hex) over split and item sets."""
        return _digest([self.split, [items.digest for items in self.sets]])

    @cached_property
    def documents_digest(self) -> str:
        """The sha256 (hex) of the set of documents alone, independent of task names and groups."""
        return _digest(sorted({doc_hash for items in self.sets for doc_hash in items.doc_hashes}))

    def __len__(self) -> int:
        return sum(len(items) for items in self.sets)


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` items with its standard error; larger is better."""

    value: float
    stderr: float
    n: int


@dataclass(frozen=True)
class TaskScore:
    """The suite's metric of one task on one split: an item mean in [0, 1]."""

    metric: str
    value: float
    stderr: float
    n: int


@dataclass(frozen=True)
class Tokens:
    """Work done for one score card, in tokens."""

    forwarded: int = 0  # run through the model, padding not counted
    padded: int = 0  # padding run through the model
    distinct: int = 0  # distinct prefixes among the requests: the minimum to run
    requested: int = 0  # sum of the requests' lengths

    def __add__(self, other: "Tokens") -> "Tokens":
        return Tokens(
            self.forwarded + other.forwarded,
            self.padded + other.padded,
            self.distinct + other.distinct,
            self.requested + other.requested,
        )


Column = NDArray[np.float64]


@dataclass(frozen=True)
class Teacher:
    """The model whose answers to a task's prompts candidates are compared with."""

    reference: str
    recipe_id: str  # identifies its weights
    recipe: Recipe  # the model alone, in the vocabulary of the candidates


@dataclass(frozen=True)
class ScoreCard:
    """Per-item scores of one candidate on one batch, and their aggregates."""

    split: str
    batch_digest: str
    columns: Mapping[str, Mapping[str, Column]]  # task → column → values
    set_digests: Mapping[str, str]  # task → ItemSet.digest
    tasks: Mapping[str, TaskScore]
    score: float | None  # 100 · Σ w (m − c) / (1 − c); None if no right answers were read
    fitness: Estimate  # what the optimizer maximizes
    tokens: Tokens = field(default_factory=Tokens)
    seconds: Mapping[str, float] = field(default_factory=dict)  # load, materialize, score
    reported: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # task → metric → lm-eval's aggregate
    modes: Mapping[str, str] = field(default_factory=dict)  # loglikelihood, generation → execution mode
    guards: Mapping[str, float] = field(default_factory=dict)  # guarded task → points, 100 (m − c) / (1 − c)
    score_stderr: float = 0.0
    # Task → its share of the fitness, see fitness.py; of a guarded task that does not score, its points.
    task_fitness: Mapping[str, Estimate] = field(default_factory=dict)

    def summary(self) -> dict[str, Any]:
        """Return the aggregates as plain JSON data, as events store them; non-finite reported values become None."""
        return {
            "split": self.split,
            "batch": self.batch_digest,
            "sets": dict(self.set_digests),
            "columns": {name: len(columns) for name, columns in self.columns.items()},  # to notice that one is lost
            "tasks": {name: vars(task).copy() for name, task in self.tasks.items()},
            "score": self.score,
            "score_stderr": self.score_stderr,
            "fitness": vars(self.fitness).copy(),
            "task_fitness": {name: vars(estimate).copy() for name, estimate in self.task_fitness.items()},
            "tokens": vars(self.tokens).copy(),
            "seconds": dict(self.seconds),
            "modes": dict(self.modes),
            "guards": dict(self.guards),
            "reported": {
                task: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
                for task, metrics in self.reported.items()
            },
        }


@dataclass(frozen=True)
class TrainingCard:
    """A model that was fine-tuned on one batch, and its scores on others.

    Attributes:
        form: `full` if all weights were trained, `lora` if LoRA factors of the linear layers were.
        parameters: Number of trained numbers.
        rate: Learning rate.
        steps: Number of steps.
        kept: Step after which the weights were best on the first batch of `cards`; these were kept.
        items: Item evaluations of all steps; a step takes three for each of its items.
        objective: Mean log-probability of right answers over the first and over the last epoch.
        seconds: Duration.
        cards: Scores, in the order of the batches asked for.
    """

    form: str
    parameters: int
    rate: float
    steps: int
    kept: int
    items: int
    objective: tuple[float, float]
    seconds: float
    cards: tuple[ScoreCard, ...]


@dataclass(frozen=True)
class GradientCard:
    """Fitness of one candidate on one batch, and its gradient in the coefficients of the candidate's recipe.

        fitness     = Σ_t v_t Σ_i g_ti        g_ti fitness of item i of task t, in the unit of the suite's fitness
        gradient[k] = d fitness / d x_k       x_k value of dimension k

    By default v_t = w_t / n_t with n_t the task's items in the batch and w_t its weight in the suite (Σ w_t = 1 over
    the batch's tasks): the fitness of a score card. A job may give v_t instead: if the batches of several jobs divide a
    larger batch, and all jobs have the v_t of that batch, the sums of their fitness values and of their gradients are
    those of the larger batch, whatever the shares. In points, g = 100 (f − c) / (1 − c) for an item mean f.

    Attributes:
        split: Split of the items.
        batch_digest: `ItemBatch.digest`.
        fitness: The fitness, its standard error over items, and the number of items.
        gradient: (dimensions,) float64, in fitness per unit of the dimension.
        tasks: Task → mean of g_ti over the task's items.
        tokens: Work done, by the forward passes alone.
        seconds: Step → time in seconds: materialize, score (forward passes and gradient).
        modes: loglikelihood → execution mode.
    """

    split: str
    batch_digest: str
    fitness: Estimate
    gradient: tuple[float, ...]
    tasks: Mapping[str, Estimate]
    tokens: Tokens = field(default_factory=Tokens)
    seconds: Mapping[str, float] = field(default_factory=dict)
    modes: Mapping[str, str] = field(default_factory=dict)


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
