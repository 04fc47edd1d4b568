"""Frozen batches: the tokenized requests of a batch, and the conversion of a model's answers into lm-eval's metrics.

The metrics are lm-eval's: its filters, `process_results` and aggregations run on each candidate's answers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evosearch.errors import SuiteError
from evosearch.evaluation.engine.generation_plan import Decoder, GenerationRequest
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest
from evosearch.evaluation.harness.gold import choice_logprob
from evosearch.evaluation.harness.language import in_language
from evosearch.evaluation.suites.suite_task import SuiteTask
from evosearch.evaluation.types import GOLD, IN_LANGUAGE, LOGLIKELIHOODS, REQUESTS, Column, ItemBatch, component


@dataclass(frozen=True)
class Answers:
    """One candidate's answers to the requests of a frozen batch, in request order."""

    lls: NDArray[np.float64]  # (loglikelihood requests,)
    greedy: NDArray[np.bool_]  # (loglikelihood requests,)
    texts: Sequence[str]  # (generation requests,)


@dataclass(frozen=True)
class TaskResult:
    """Per-item columns and aggregates of one task, for one candidate."""

    columns: dict[str, Column]  # column → (items,) values; LOGLIKELIHOODS has one value per request
    reported: dict[str, float]  # metric → lm-eval's aggregate over the items; inf on overflow


@dataclass(frozen=True)
class Gold:
    """Source of a document's gold log-probability: a choice among its queries, or a separate request."""

    choice: int | None = None  # index of the right choice among the document's queries
    among: int = 0  # number of choices
    request: int | None = None  # index of a loglikelihood request
    tokens: int = 1  # continuation tokens of that request


@dataclass(frozen=True)
class Query:
    """One lm-eval instance: its request type and the requests that answer it (several for a rolling one, summed)."""

    kind: str  # lm-eval's request type
    requests: tuple[int, ...]  # indices into the texts of a generative query, otherwise into the log-likelihoods

    @property
    def generates(self) -> bool:
        """Whether the answer is a generated text."""
        return self.kind == "generate_until"

    def answer(self, answers: Answers) -> Any:
        """Return the response of lm-eval's model to the instance."""
        if self.generates:
            return answers.texts[self.requests[0]]
        if self.kind == "loglikelihood_rolling":
            return self.loglikelihood(answers)
        return self.loglikelihood(answers), bool(answers.greedy[self.requests[0]])

    def loglikelihood(self, answers: Answers) -> float:
        """Return the summed log-likelihood of the requests."""
        return float(answers.lls[list(self.requests)].sum())


@dataclass(frozen=True)
class FrozenDocument:
    """One document with its lm-eval instances and their queries."""

    document: Any
    instances: tuple[Any, ...]  # lm_eval.api.instance.Instance, by idx
    queries: tuple[Query, ...]  # one for each instance
    gold: Gold | None


@dataclass(frozen=True)
class FrozenTask:
    """The documents of one item set and the lm-eval task that scores them."""

    spec: SuiteTask
    where: str  # the task's key in the suite, for errors
    task: Any  # lm_eval.api.task.Task
    ensemble: Any  # lm_eval.api.filter.FilterEnsemble
    documents: tuple[FrozenDocument, ...]

    def collect(self, answers: Answers) -> TaskResult:
        """Return the per-item columns and reported aggregates of one candidate's answers."""
        rows = self._process(answers)
        right_language = None
        if self.spec.language is not None:
            flags = [self._is_in_language(document, answers) for document in self.documents]
            right_language = np.array(flags, dtype=np.float64)
            rows = [row if ok else self._wrong(row) for row, ok in zip(rows, flags, strict=True)]
        columns: dict[str, Column] = {}
        for name in rows[0]:
            columns.update(_columns(name, [row.get(name) for row in rows]))
        if not self.spec.report_only:
            self._check(columns)
            columns[GOLD] = np.array([self._gold(document, answers) for document in self.documents])
        queries = [[query for query in document.queries if not query.generates] for document in self.documents]
        if any(queries):
            columns[REQUESTS] = np.array([len(own) for own in queries], dtype=np.float64)
            columns[LOGLIKELIHOODS] = np.array([query.loglikelihood(answers) for own in queries for query in own])
        reported = self._aggregate(rows)
        if right_language is not None:
            columns[IN_LANGUAGE] = right_language
            reported[IN_LANGUAGE] = float(right_language.mean())
        return TaskResult(columns, reported)

    def _is_in_language(self, document: FrozenDocument, answers: Answers) -> bool:
        """Whether all texts generated for a document are in the task's language."""
        assert self.spec.language is not None
        texts = [answers.texts[query.requests[0]] for query in document.queries if query.generates]
        return all(in_language(text, self.spec.language) for text in texts)

    def _wrong(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        """A document's metrics, with the scored metric set to 0."""
        return {**row, self.spec.metric: 0.0} if self.spec.metric in row else row

    def _process(self, answers: Answers) -> list[Mapping[str, Any]]:
        """Each document's metrics, computed by lm-eval; the instances are reset afterwards."""
        instances = [instance for document in self.documents for instance in document.instances]
        try:
            for document in self.documents:
                for instance, query in zip(document.instances, document.queries, strict=True):
                    instance.resps = [query.answer(answers)] * (instance.repeats or 1)
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
        """The task's metrics as `lm_eval` reports them: its functions, over the documents that have the metric.

        If the suite lists no `metrics`, those that lm-eval cannot aggregate (such as a binary F1 on three classes) are
        skipped.
        """
        from lm_eval.api.metrics import mean

        known = self.task.aggregation()
        requested = self.spec.metrics
        names = dict.fromkeys(name for row in rows for name in row)
        if requested is not None or (self.spec.report_only and self.spec.metric):
            names = dict.fromkeys(name for name in (self.spec.metric, *(requested or ())) if name)
        reported = {}
        for name in names:
            values = [row[name] for row in rows if name in row]
            try:
                value = known.get(name, mean)(values)
            except OverflowError:  # the exponential of a huge perplexity
                value = math.inf
            except Exception as exc:
                if requested is None and name != self.spec.metric:
                    continue
                what = f"lm-eval cannot aggregate '{name}': {type(exc).__name__}: {exc}"
                raise SuiteError(f"{self.where}.metrics", what, next="Remove it, or fix the task") from exc
            if isinstance(value, Real | np.number):
                reported[name] = float(value)
        return reported

    def _check(self, columns: Mapping[str, Column]) -> None:
        metric = self.spec.metric
        values = columns.get(metric)
        if values is None:
            known = ", ".join(columns) or "none"
            what = f"'{metric}' is not one number per document"
            raise SuiteError(f"{self.where}.metric", what, f"Metrics with one number per document: {known}")
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
        lls = [query.loglikelihood(answers) for query in document.queries[: gold.among]]
        return choice_logprob(lls, gold.choice)


@dataclass(frozen=True)
class FrozenBatch:
    """A batch that any model with this tokenizer can run."""

    batch: ItemBatch
    loglikelihoods: tuple[LoglikelihoodRequest, ...]
    generations: tuple[GenerationRequest, ...]
    decoder: Decoder
    tasks: tuple[FrozenTask, ...] = field(repr=False)

    def collect(self, answers: Answers) -> dict[str, TaskResult]:
        """Return task → result, from the answers of one candidate.

        Raises:
            SuiteError: The suite's metric of a task is not one number in [0, 1] per document.
        """
        return {task.spec.name: task.collect(answers) for task in self.tasks}


def _columns(name: str, values: Sequence[Any]) -> dict[str, Column]:
    """The columns of one metric: a single one if every item has a number, one per component if it has a tuple.

    lm-eval aggregates over such tuples: (log-likelihood, words) for a perplexity, (right, chosen) for an F1.
    """
    if all(_is_number(value) for value in values):
        return {name: np.array(values, dtype=np.float64)}
    first = values[0]
    if not isinstance(first, tuple) or not all(
        isinstance(value, tuple) and len(value) == len(first) and all(map(_is_number, value)) for value in values
    ):
        return {}  # texts, lists or missing values
    return {component(name, k): np.array([value[k] for value in values], dtype=np.float64) for k in range(len(first))}


def _is_number(value: Any) -> bool:
    return isinstance(value, Real | np.number | np.bool_)
