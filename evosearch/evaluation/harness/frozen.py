"""Requests of an item batch, built and tokenized once; and the way back from a model's answers to lm-eval's metrics.

The metrics are lm-eval's: its filters, its `process_results` and its aggregations run for every candidate, on answers
of ours.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evosearch.errors import SuiteError
from evosearch.evaluation.engine.generation import Decoder, GenerationRequest
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest
from evosearch.evaluation.harness.gold import choice_logprob
from evosearch.evaluation.harness.language import in_language
from evosearch.evaluation.suites.suite import SuiteTask
from evosearch.evaluation.types import GOLD, IN_LANGUAGE, LOGLIKELIHOODS, REQUESTS, Column, ItemBatch, part


@dataclass(frozen=True)
class Answers:
    """What one candidate answered to the requests of a frozen batch, in request order."""

    lls: NDArray[np.float64]  # (loglikelihood requests,)
    greedy: NDArray[np.bool_]  # (loglikelihood requests,)
    texts: Sequence[str]  # (generation requests,)


@dataclass(frozen=True)
class Judged:
    """What one task's answers are worth."""

    columns: dict[str, Column]  # one number an item
    reported: dict[str, float]  # metric → lm-eval's aggregate over the items; inf where it overflows


@dataclass(frozen=True)
class Gold:
    """How a document's gold log-probability is read: at a choice among its requests, or from a request of its own."""

    choice: int | None = None  # which of the document's requests
    among: int = 0  # of how many: the choices
    request: int | None = None  # a loglikelihood request
    tokens: int = 1  # its length, continuation tokens


@dataclass(frozen=True)
class Ask:
    """One of lm-eval's instances: its kind, and the requests that answer it (a rolling one has several, summed)."""

    kind: str  # lm-eval's request type
    requests: tuple[int, ...]  # indices into the texts where it generates, else into the log-likelihoods

    @property
    def generates(self) -> bool:
        return self.kind == "generate_until"

    def answer(self, answers: Answers) -> Any:
        """What lm-eval's model would return for the instance."""
        if self.generates:
            return answers.texts[self.requests[0]]
        if self.kind == "loglikelihood_rolling":
            return self.loglikelihood(answers)
        return self.loglikelihood(answers), bool(answers.greedy[self.requests[0]])

    def loglikelihood(self, answers: Answers) -> float:
        return float(answers.lls[list(self.requests)].sum())


@dataclass(frozen=True)
class FrozenDocument:
    """One document with lm-eval's instances for it and where their answers stand."""

    document: Any
    instances: tuple[Any, ...]  # lm_eval.api.instance.Instance, by idx
    asks: tuple[Ask, ...]  # one for each instance
    gold: Gold | None


@dataclass(frozen=True)
class FrozenTask:
    """The documents of one item set and the lm-eval task that judges them."""

    spec: SuiteTask
    where: str  # the task's key in the suite, for errors
    task: Any  # lm_eval.api.task.Task
    ensemble: Any  # the lm_eval.api.filter.FilterEnsemble of the suite's choice
    documents: tuple[FrozenDocument, ...]

    def collect(self, answers: Answers) -> Judged:
        """Per-item columns and reported aggregates, from the answers of one candidate."""
        rows = self._judge(answers)
        spoken = None
        if self.spec.language is not None:
            spoken = np.array([self._is_spoken(document, answers) for document in self.documents], dtype=np.float64)
            rows = [row if ok else self._wrong(row) for row, ok in zip(rows, spoken, strict=True)]
        columns: dict[str, Column] = {}
        for name in rows[0]:
            columns.update(_columns(name, [row.get(name) for row in rows]))
        if not self.spec.report_only:
            self._check(columns)
            columns[GOLD] = np.array([self._gold(document, answers) for document in self.documents])
        asks = [[ask for ask in document.asks if not ask.generates] for document in self.documents]
        if any(asks):
            columns[REQUESTS] = np.array([len(own) for own in asks], dtype=np.float64)
            columns[LOGLIKELIHOODS] = np.array([ask.loglikelihood(answers) for own in asks for ask in own])
        reported = self._aggregate(rows)
        if spoken is not None:
            columns[IN_LANGUAGE] = spoken
            reported[IN_LANGUAGE] = float(spoken.mean())
        return Judged(columns, reported)

    def _is_spoken(self, document: FrozenDocument, answers: Answers) -> bool:
        """Whether all that was generated for a document is in the task's language."""
        assert self.spec.language is not None
        texts = [answers.texts[ask.requests[0]] for ask in document.asks if ask.generates]
        return all(in_language(text, self.spec.language) for text in texts)

    def _wrong(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A document's metrics, the suite's own at its worst."""
        return {**row, self.spec.metric: 0.0} if self.spec.metric in row else row

    def _judge(self, answers: Answers) -> list[Mapping[str, Any]]:
        """Each document's metrics by lm-eval; the instances are left as empty as they were."""
        instances = [instance for document in self.documents for instance in document.instances]
        try:
            for document in self.documents:
                for instance, ask in zip(document.instances, document.asks, strict=True):
                    instance.resps = [ask.answer(answers)] * (instance.repeats or 1)
            self.ensemble.apply(instances)
            key = self.ensemble.name
            return [
                self.task.process_results(document.document, [one.filtered_resps[key] for one in document.instances])
                for document in self.documents
            ]
        finally:
            for instance in instances:
                instance.resps, instance.filtered_resps = [], {}

    def _aggregate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        """The task's metrics as `lm_eval` reports them: over the documents that have them, by lm-eval's functions.

        Where the suite names no `metrics`, what lm-eval cannot aggregate (a binary F1 of three classes) is left out.
        """
        from lm_eval.api.metrics import mean

        known = self.task.aggregation()
        asked = self.spec.metrics
        names = dict.fromkeys(name for row in rows for name in row)
        if asked is not None or (self.spec.report_only and self.spec.metric):
            names = dict.fromkeys(name for name in (self.spec.metric, *(asked or ())) if name)
        reported = {}
        for name in names:
            values = [row[name] for row in rows if name in row]
            try:
                value = known.get(name, mean)(values)
            except OverflowError:  # the exponential of a hopeless perplexity
                value = math.inf
            except Exception as exc:
                if asked is None and name != self.spec.metric:
                    continue
                what = f"lm-eval cannot aggregate '{name}': {type(exc).__name__}: {exc}"
                raise SuiteError(f"{self.where}.metrics", what, next="Leave it out, or mend the task") from exc
            if isinstance(value, Real | np.number):
                reported[name] = float(value)
        return reported

    def _check(self, columns: Mapping[str, Column]) -> None:
        metric = self.spec.metric
        values = columns.get(metric)
        if values is None:
            known = ", ".join(columns) or "none"
            what = f"'{metric}' is not one number for every document"
            raise SuiteError(f"{self.where}.metric", what, f"Such metrics of this task: {known}")
        if not ((values >= 0) & (values <= 1)).all():
            what = f"'{metric}' is not in [0, 1]: got {values.min():g} to {values.max():g}"
            raise SuiteError(f"{self.where}.metric", what, "A score needs an item mean in [0, 1]")

    def _gold(self, document: FrozenDocument, answers: Answers) -> float:
        gold = document.gold
        if gold is None:
            return math.nan
        if gold.request is not None:
            return float(answers.lls[gold.request]) / gold.tokens
        assert gold.choice is not None
        return choice_logprob([ask.loglikelihood(answers) for ask in document.asks[: gold.among]], gold.choice)


@dataclass(frozen=True)
class FrozenBatch:
    """An item batch, ready to be run by any model that has this tokenizer."""

    batch: ItemBatch
    loglikelihoods: tuple[LoglikelihoodRequest, ...]
    generations: tuple[GenerationRequest, ...]
    decoder: Decoder
    tasks: tuple[FrozenTask, ...] = field(repr=False)

    def collect(self, answers: Answers) -> dict[str, Judged]:
        """Task → what its answers are worth, from the answers of one candidate.

        Raises:
            SuiteError: the suite's metric of a task is not one number in [0, 1] for every document.
        """
        return {task.spec.name: task.collect(answers) for task in self.tasks}


def _columns(name: str, values: Sequence[Any]) -> dict[str, Column]:
    """The columns of one metric: its own where every item has a number, one a part where every item has a tuple.

    The tuples are what lm-eval aggregates over: (log-likelihood, words) of a perplexity, (right, chosen) of an F1.
    """
    if all(_is_number(value) for value in values):
        return {name: np.array(values, dtype=np.float64)}
    first = values[0]
    if not isinstance(first, tuple) or not all(
        isinstance(value, tuple) and len(value) == len(first) and all(map(_is_number, value)) for value in values
    ):
        return {}  # texts, lists or nothing: no item's value
    return {part(name, k): np.array([value[k] for value in values], dtype=np.float64) for k in range(len(first))}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | np.number | np.bool_)
