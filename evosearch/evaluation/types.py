"""What the other rooms may know of an evaluation: items, batches of items, score cards. No torch."""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPLITS = ("search", "validation", "test")

# Columns that are no metric of lm-eval's. A metric's column has the metric's name, as `acc`.
LOGLIKELIHOODS = "loglikelihoods"  # (requests,) summed log-likelihood of each request, in request order
REQUESTS = "requests"  # (items,) how many requests each item has: how to cut LOGLIKELIHOODS into items
GOLD = "gold_logprob"  # (items,) log-probability of the right answer, see scores.py
IN_LANGUAGE = "in_language"  # (items,) 1 where what was generated is in the language that the task asks for


def part(metric: str, index: int) -> str:
    """Column of one part of a metric that has a tuple for each item: `word_perplexity[1]`."""
    return f"{metric}[{index}]"


@dataclass(frozen=True)
class ItemSet:
    """Documents of one task that are scored together, in a fixed order.

    `doc_ids` are positions, sorted, in the lm-eval task's evaluation documents (what `lm_eval --samples` takes), or in
    those of its dataset split that `documents` names; `doc_hashes` are sha256 of the documents' canonical JSON;
    `groups` ties documents that are not independent.
    """

    task: str  # the task's name in the suite
    lm_eval_task: str  # the task's name in lm-eval
    doc_ids: tuple[int, ...]
    doc_hashes: tuple[str, ...]
    groups: tuple[str, ...] = ()
    documents: str = ""  # train, validation or test, where that is not what lm-eval evaluates

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) over task and documents."""
        parts = [self.task, self.lm_eval_task, self.doc_ids, self.doc_hashes, self.groups]
        return _digest([*parts, self.documents] if self.documents else parts)

    def __len__(self) -> int:
        return len(self.doc_ids)


@dataclass(frozen=True)
class ItemBatch:
    """The items of one split, or a part of them, scored in one go."""

    split: str
    sets: tuple[ItemSet, ...]

    @cached_property
    def digest(self) -> str:
        return _digest([self.split, [items.digest for items in self.sets]])

    @cached_property
    def documents_digest(self) -> str:
        """sha256 (hex) of which documents these are, whatever the tasks are called and however they are grouped."""
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
    distinct: int = 0  # distinct prefixes among the requests: what must be run at least
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
class ScoreCard:
    """Per-item scores of one candidate on one split, and the aggregates made from them."""

    split: str
    batch_digest: str
    columns: Mapping[str, Mapping[str, Column]]  # task → column → values
    set_digests: Mapping[str, str]  # task → ItemSet.digest
    tasks: Mapping[str, TaskScore]
    score: float  # 100 · Σ w (m − c) / (1 − c)
    fitness: Estimate  # what an optimizer is told
    tokens: Tokens = field(default_factory=Tokens)
    seconds: Mapping[str, float] = field(default_factory=dict)  # load, materialize, score
    reported: Mapping[str, Mapping[str, float]] = field(default_factory=dict)  # task → metric → lm-eval's aggregate
    modes: Mapping[str, str] = field(default_factory=dict)  # loglikelihood, generation → how the model was run
    guards: Mapping[str, float] = field(default_factory=dict)  # guarded task → its own points, 100 (m − c) / (1 − c)
    score_stderr: float = 0.0
    task_fitness: Mapping[str, Estimate] = field(
        default_factory=dict
    )  # task -> its share of the fitness, else its points

    def summary(self) -> dict[str, Any]:
        """The aggregates as plain JSON data: what an event holds. A reported value that is not finite is None."""
        guards = {"guards": dict(self.guards)} if self.guards else {}
        return guards | {
            "split": self.split,
            "batch": self.batch_digest,
            "sets": dict(self.set_digests),
            "tasks": {name: vars(task).copy() for name, task in self.tasks.items()},
            "score": self.score,
            "score_stderr": self.score_stderr,
            "fitness": vars(self.fitness).copy(),
            "task_fitness": {name: vars(estimate).copy() for name, estimate in self.task_fitness.items()},
            "tokens": vars(self.tokens).copy(),
            "seconds": dict(self.seconds),
            "modes": dict(self.modes),
            "reported": {
                task: {name: value if math.isfinite(value) else None for name, value in metrics.items()}
                for task, metrics in self.reported.items()
            },
        }


def _digest(data: Any) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
