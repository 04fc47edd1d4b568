"""Frozen batches: the tokenized requests of a batch, and the conversion of a model's answers into item values.

The metrics are lm-eval's: its filters, `process_results` and aggregations run on each candidate's answers. The fitness
is computed by `item_fitness.py`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from evosearch.errors import SuiteError
from evosearch.evaluation.engine.generation_plan import Decoder, GenerationRequest
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodRequest
from evosearch.evaluation.harness.conclusions import NO_SECOND_PASS, Concluding, SecondPass, second_pass
from evosearch.evaluation.harness.divergence import Exercise, Taught, taught_fitness
from evosearch.evaluation.harness.item_fitness import ItemFitness, ItemFitnessBuilder
from evosearch.evaluation.harness.judge import Judge, process_results
from evosearch.evaluation.harness.language import in_language
from evosearch.evaluation.harness.requests import Requests
from evosearch.evaluation.harness.right_answers import RightAnswer, RightChoice, RightConclusion, RightText
from evosearch.evaluation.suites.suite_task import SuiteTask
from evosearch.evaluation.types import (
    IN_LANGUAGE,
    LOGLIKELIHOODS,
    REQUESTS,
    Column,
    FitnessKind,
    ItemBatch,
    component,
)

R = TypeVar("R", RightChoice, RightText, RightConclusion)


@dataclass(frozen=True)
class Answers:
    """One candidate's answers to the requests of a frozen batch, in request order.

    Log-likelihoods and margins of the second pass follow those of the batch.
    """

    lls: NDArray[np.float64]  # (loglikelihood requests,)
    greedy: NDArray[np.bool_]  # (loglikelihood requests,)
    texts: Sequence[str]  # (generation requests,)
    margins: NDArray[np.float64]  # (loglikelihood requests,)
    second: SecondPass = NO_SECOND_PASS


@dataclass(frozen=True)
class TaskResult:
    """Per-item columns and aggregates of one task, for one candidate."""

    columns: dict[str, Column]  # column → (items,) values; LOGLIKELIHOODS has one value per request
    reported: dict[str, float]  # metric → lm-eval's aggregate over the items; inf on overflow


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
    right: RightAnswer | None
    exercise: Exercise | None = None  # with a fitness by teachers
    taught: Taught | None = None  # how the document is compared with its teacher, once that has answered


@dataclass(frozen=True)
class FrozenTask:
    """The documents of one item set and the lm-eval task that scores them."""

    spec: SuiteTask
    where: str  # the task's key in the suite, for errors
    task: Any  # lm_eval.api.task.Task
    ensemble: Any  # lm_eval.api.filter.FilterEnsemble
    documents: tuple[FrozenDocument, ...]
    labelled: bool = True  # right answers are read

    @property
    def generates(self) -> bool:
        """Whether a document is answered by generated text."""
        return any(query.generates for document in self.documents for query in document.queries)

    def right(self, form: type[R]) -> dict[int, R]:
        """Return item → right answers, of the items that have them in this form."""
        return {item: one.right for item, one in enumerate(self.documents) if isinstance(one.right, form)}

    @property
    def taught(self) -> dict[int, Taught]:
        """Item → how it is compared with its teacher."""
        return {item: one.taught for item, one in enumerate(self.documents) if one.taught is not None}

    def collect(self, answers: Answers) -> TaskResult:
        """Return the per-item columns and reported aggregates of one candidate's answers."""
        if not self.labelled:
            return TaskResult({}, {})
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
        """Each document's metrics, computed by lm-eval."""
        documents = [(document.document, document.instances) for document in self.documents]
        given = [[query.answer(answers) for query in document.queries] for document in self.documents]
        return process_results(self.task, self.ensemble, documents, given)

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

    def concluding(self, texts: Sequence[str]) -> Iterator[Concluding]:
        """Yield the documents that are answered by a conclusion, with the texts generated for them."""
        for item, document in enumerate(self.documents):
            if isinstance(document.right, RightConclusion):
                text = texts[document.queries[document.right.query].requests[0]]
                judge = Judge(self.task, self.ensemble, self.spec.metric, document.document, document.instances)
                foreign = self.spec.language is not None and not in_language(text, self.spec.language)
                yield Concluding(self.spec.name, item, document.right, text, judge.right([text]), foreign)


@dataclass(frozen=True)
class FrozenBatch:
    """A batch that any model with this tokenizer can run, with right answers for one kind of fitness."""

    batch: ItemBatch
    loglikelihoods: tuple[LoglikelihoodRequest, ...]
    generations: tuple[GenerationRequest, ...]
    decoder: Decoder
    tasks: tuple[FrozenTask, ...] = field(repr=False)
    fitness: FitnessKind
    tokenizing: Requests = field(repr=False)

    def collect(self, answers: Answers) -> dict[str, TaskResult]:
        """Return task → result, from the answers of one candidate.

        Raises:
            SuiteError: The suite's metric of a task is not one number in [0, 1] per document.
        """
        results = {task.spec.name: task.collect(answers) for task in self.tasks}
        told = self._told(answers.second) if self.has_fitness else None
        for fitness in filter(None, (self._golds, told)):
            chosen = list(fitness.indices)
            lls, margins = torch.from_numpy(answers.lls[chosen]), torch.from_numpy(answers.margins[chosen])
            for task, columns in fitness.columns(lls, margins).items():
                results[task].columns.update({name: values.numpy() for name, values in columns.items()})
        return results

    @property
    def has_fitness(self) -> bool:
        """Whether the items have a fitness other than their score; with teachers, once these have answered."""
        if self.fitness == "teachers":
            return any(task.taught for task in self.tasks)
        return self.fitness != "score"

    def item_fitness(self, kind: FitnessKind) -> ItemFitness:
        """Return the fitness of the items as a function of log-likelihoods.

        Items answered by the conclusion of a generated text have the constant value of an item without one; see
        `ItemFitness.generated`.

        Args:
            kind: The kind that the batch was frozen for; not `score`, which is no function of log-likelihoods.
        """
        assert kind == self.fitness, f"frozen for {self.fitness}"
        return self._told(NO_SECOND_PASS)

    @cached_property
    def concluded(self) -> tuple[GenerationRequest, ...]:
        """The requests whose generated text is read again up to its conclusion, in the second pass."""
        return tuple(
            self.generations[document.queries[document.right.query].requests[0]]
            for task in self.tasks
            for document in task.documents
            if isinstance(document.right, RightConclusion)
        )

    def second_pass(self, texts: Sequence[str]) -> SecondPass:
        """Return the requests for the conclusions of one candidate's generated texts (generation requests,)."""
        documents = [one for task in self.tasks for one in task.concluding(texts)]
        tokenize = partial(self.tokenizing.pair, "conclusion")
        return second_pass(documents, len(self.loglikelihoods), tokenize, self.tokenizing.request)

    def _told(self, second: SecondPass) -> ItemFitness:
        return self._build(second) if second.requests else self._static

    @cached_property
    def _static(self) -> ItemFitness:
        return self._build(NO_SECOND_PASS)

    def _build(self, second: SecondPass) -> ItemFitness:
        if self.fitness == "teachers":
            return taught_fitness([(t.spec, t.taught) for t in self.tasks if t.taught], self.loglikelihoods)
        builder = ItemFitnessBuilder(self.fitness, (*self.loglikelihoods, *second.requests))
        generated = None
        for task in self.tasks:
            if task.spec.report_only:
                continue
            texts = task.right(RightText)
            for item in task.right(RightConclusion):
                generated = generated or task.spec.name
                texts[item] = second.answers.get(task.spec.name, {}).get(item, RightText(()))
            builder.add(task.spec, len(task.documents), task.right(RightChoice), texts)
        return builder.build(generated)

    @cached_property
    def _golds(self) -> ItemFitness | None:
        """Gold log-probabilities of the tasks whose right answers are requests of lm-eval's, whatever the fitness."""
        builder = ItemFitnessBuilder("gold_logprob", self.loglikelihoods, raw=True)
        tasks = [task for task in self.tasks if task.labelled and not task.spec.report_only and not task.generates]
        for task in tasks:
            builder.add(task.spec, len(task.documents), task.right(RightChoice), task.right(RightText))
        return builder.build() if tasks else None


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
