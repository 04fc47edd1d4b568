"""Requests of an item batch, built and tokenized once; and the way back from a model's answers to lm-eval's metrics.

The metrics are lm-eval's: its filters and its `process_results` run for every candidate, on answers of ours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evosearch.errors import SuiteError
from evosearch.evaluation.generation import Decoder, GenerationRequest
from evosearch.evaluation.gold import choice_logprob
from evosearch.evaluation.loglikelihood import LoglikelihoodRequest
from evosearch.evaluation.types import GOLD, LOGLIKELIHOODS, REQUESTS, Column, ItemBatch


@dataclass(frozen=True)
class Answers:
    """What one candidate answered to the requests of a frozen batch, in request order."""

    lls: NDArray[np.float64]  # (loglikelihood requests,)
    greedy: NDArray[np.bool_]  # (loglikelihood requests,)
    texts: Sequence[str]  # (generation requests,)


@dataclass(frozen=True)
class Gold:
    """How a document's gold log-probability is read: at a choice among its requests, or from a request of its own."""

    choice: int | None = None  # which of the document's requests
    among: int = 0  # of how many: the choices
    request: int | None = None  # a loglikelihood request
    tokens: int = 1  # its length, continuation tokens


@dataclass(frozen=True)
class FrozenDocument:
    """One document with lm-eval's instances for it and where their answers stand."""

    document: Any
    instances: tuple[Any, ...]  # lm_eval.api.instance.Instance, by idx
    requests: tuple[int, ...]  # instance → index into lls (or texts)
    gold: Gold | None


@dataclass(frozen=True)
class FrozenTask:
    """The documents of one item set and the lm-eval task that judges them."""

    name: str
    where: str  # the task's key in the suite, for errors
    task: Any  # lm_eval.api.task.Task
    metric: str
    ensemble: Any  # the lm_eval.api.filter.FilterEnsemble of the suite's choice
    generates: bool
    documents: tuple[FrozenDocument, ...]

    def collect(self, answers: Answers) -> dict[str, Column]:
        """Column → values, from the answers of one candidate."""
        rows = self._judge(answers)
        columns: dict[str, Column] = {}
        for name in rows[0]:
            values = [row.get(name) for row in rows]
            if all(isinstance(value, Real | np.number | np.bool_) for value in values):  # no item's value otherwise
                columns[name] = np.array(values, dtype=np.float64)
        self._check(columns)
        columns[GOLD] = np.array([self._gold(document, answers) for document in self.documents])
        if not self.generates:
            columns[REQUESTS] = np.array([len(document.requests) for document in self.documents], dtype=np.float64)
            columns[LOGLIKELIHOODS] = answers.lls[[i for document in self.documents for i in document.requests]]
        return columns

    def _judge(self, answers: Answers) -> list[Mapping[str, Any]]:
        """Each document's metrics by lm-eval; the instances are left as empty as they were."""
        instances = [instance for document in self.documents for instance in document.instances]
        try:
            for document in self.documents:
                for instance, index in zip(document.instances, document.requests, strict=True):
                    if self.generates:
                        answer: Any = answers.texts[index]
                    else:
                        answer = (float(answers.lls[index]), bool(answers.greedy[index]))
                    instance.resps = [answer] * (instance.repeats or 1)
            self.ensemble.apply(instances)
            key = self.ensemble.name
            return [
                self.task.process_results(document.document, [one.filtered_resps[key] for one in document.instances])
                for document in self.documents
            ]
        finally:
            for instance in instances:
                instance.resps, instance.filtered_resps = [], {}

    def _check(self, columns: Mapping[str, Column]) -> None:
        values = columns.get(self.metric)
        if values is None:
            known = ", ".join(columns) or "none"
            what = f"'{self.metric}' is not one number for every document"
            raise SuiteError(f"{self.where}.metric", what, f"Such metrics of this task: {known}")
        if not ((values >= 0) & (values <= 1)).all():
            what = f"'{self.metric}' is not in [0, 1]: got {values.min():g} to {values.max():g}"
            raise SuiteError(f"{self.where}.metric", what, "A score needs an item mean in [0, 1]")

    def _gold(self, document: FrozenDocument, answers: Answers) -> float:
        gold = document.gold
        if gold is None:
            return math.nan
        if gold.request is not None:
            return float(answers.lls[gold.request]) / gold.tokens
        assert gold.choice is not None
        return choice_logprob([answers.lls[i] for i in document.requests[: gold.among]], gold.choice)


@dataclass(frozen=True)
class FrozenBatch:
    """An item batch, ready to be run by any model that has this tokenizer."""

    batch: ItemBatch
    loglikelihoods: tuple[LoglikelihoodRequest, ...]
    generations: tuple[GenerationRequest, ...]
    decoder: Decoder
    tasks: tuple[FrozenTask, ...] = field(repr=False)

    def collect(self, answers: Answers) -> dict[str, dict[str, Column]]:
        """Task → column → values, from the answers of one candidate.

        Raises:
            SuiteError: the suite's metric of a task is not one number in [0, 1] for every document.
        """
        return {task.name: task.collect(answers) for task in self.tasks}
