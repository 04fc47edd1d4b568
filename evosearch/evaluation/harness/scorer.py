"""Scoring of models on a suite. All work that does not depend on the weights is done once.

    scorer = Scorer(suite, tokenizer, max_length_of(model.config, tokenizer))
    card = scorer.score(model, scorer.batch("search"))

After the first score of a batch, later candidates only cost forward passes and lm-eval's metrics.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from evosearch.errors import SuiteError
from evosearch.evaluation.engine.generation import generate
from evosearch.evaluation.engine.generation_plan import GenerationPlan, lay_out_generations
from evosearch.evaluation.engine.loglikelihood import Likelihoods, LoglikelihoodPlan, lay_out, score_loglikelihoods
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.evaluation.harness.frozen import Answers, FrozenBatch
from evosearch.evaluation.harness.gradients import differentiate
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.harness.item_fitness import ItemFitness
from evosearch.evaluation.harness.teachers import Classroom, SplitLesson, taught
from evosearch.evaluation.statistics.gradient_card import gradient_card, item_weights
from evosearch.evaluation.statistics.scores import make_card
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import FitnessKind, GradientCard, ItemBatch, ScoreCard, Teacher, Tokens

Plans = tuple[FrozenBatch, LoglikelihoodPlan, GenerationPlan]


class Scorer:
    """Scorer of one suite for models with one tokenizer.

    Args:
        suite: The suite to score on.
        tokenizer: The candidates' transformers tokenizer.
        max_length: The candidates' context length in tokens (`harness.max_length_of`).
        options: Batch sizes and execution modes.
        harness: The suite's harness, if already loaded.

    Attributes:
        caching: Whether the current or last run keeps keys and values of many rows in memory.

    Raises:
        SuiteError: See `Harness`.
    """

    def __init__(
        self,
        suite: Suite,
        tokenizer: Any,
        max_length: int,
        options: ScoreOptions | None = None,
        harness: Harness | None = None,
    ) -> None:
        self.suite, self.options = suite, options or ScoreOptions()
        self._tokenizer, self._max_length = tokenizer, max_length
        self.harness = harness or Harness(suite)
        assert self.harness.suite == suite, "a harness of another suite"
        self._plans: dict[str, Plans] = {}
        self._gradients: dict[str, tuple[ItemFitness, LoglikelihoodPlan]] = {}
        self._lessons: dict[str, dict[str, SplitLesson]] = {}  # split → task → lesson
        self.caching = False

    def use(self, options: ScoreOptions) -> None:
        """Change the options; frozen requests are kept, and are laid out again when they are scored."""
        self.options = options
        for digest, (frozen, _, _) in self._plans.items():
            self._plans[digest] = self._plan(frozen)
        self._gradients.clear()

    def batch(self, split: str) -> ItemBatch:
        """Return all items of a split."""
        return self.harness.batch(split)

    def prepare(self, batch: ItemBatch) -> None:
        """Freeze and lay out a batch before its first score.

        Raises:
            SuiteError: See `Harness.freeze`.
        """
        self.plans(batch)

    def learn(self, batch: ItemBatch, teachers: Mapping[str, Teacher], classroom: Classroom) -> None:
        """Compare the items of a batch's split with their teachers from now on.

        Args:
            batch: The items, a split or a subset of one; teachers answer all items of the split at once.
            teachers: Task → its teacher; tasks without one are left as they are.
            classroom: Where lessons are kept, and how missing ones are computed.

        Raises:
            CandidateError: A teacher's outputs are not finite.
            CheckpointError: A lesson cannot be written.
            SuiteError: See `Harness.freeze`.
        """
        known = self._lessons.setdefault(batch.split, {})
        for name in [items.task for items in batch.sets if len(items) and items.task in teachers]:
            teacher = teachers[name]
            if name in known and known[name].recipe_id == teacher.recipe_id:
                continue
            (items,) = (one for one in self.harness.batch(batch.split).sets if one.task == name)
            frozen = self.harness.freeze(ItemBatch(batch.split, (items,)), self._tokenizer, self._max_length)
            known[name] = SplitLesson(teacher.recipe_id, classroom.lesson(teacher, frozen), items.doc_ids)
            self._plans = {key: plans for key, plans in self._plans.items() if plans[0].batch.split != batch.split}
            self._gradients.clear()

    def score(self, model: Any, batch: ItemBatch, seconds: Mapping[str, float] | None = None) -> ScoreCard:
        """Score a model on a batch: a split, or any subset of one.

        Args:
            model: A causal transformers model in evaluation mode, on the device to run on.
            batch: The items to score.
            seconds: Timings of earlier steps (`load`, `materialize`) to keep on the card.

        Raises:
            CandidateError: The model's outputs are not finite, or its configuration is not supported.
            SuiteError: The batch cannot be frozen, or a metric is not in [0, 1].
        """
        assert not model.training, "dropout would be scored"
        frozen, plan, generations = self.plans(batch)
        started = time.perf_counter()
        self.caching = bool(plan.requests) and plan.mode(model) == "prefix"
        found = score_loglikelihoods(model, plan)
        self.caching = bool(generations.requests)
        texts, generated = generate(model, generations)
        answers, concluded = self._answers(model, frozen, found, texts)
        results = self.harness.collect(frozen, answers)
        spent = {**(seconds or {}), "score": time.perf_counter() - started}
        columns = {task: result.columns for task, result in results.items()}
        reported = {task: result.reported for task, result in results.items()}
        card = make_card(self.suite, batch, columns, found.tokens + generated + concluded, spent, reported)
        modes: dict[str, LoglikelihoodPlan | GenerationPlan] = {"loglikelihood": plan, "generation": generations}
        return replace(card, modes={kind: plan.mode(model) for kind, plan in modes.items() if plan.requests})

    def gradient(
        self,
        model: Any,
        batch: ItemBatch,
        total: Callable[[], tuple[float, ...]],
        weights: Mapping[str, float] | None = None,
        seconds: Mapping[str, float] | None = None,
    ) -> GradientCard:
        """Compute the fitness of a model on a batch and its gradient, by forward and backward passes.

        Args:
            model: A causal transformers model in evaluation mode, on the device to run on.
            batch: The items.
            total: Returns the gradient after the last backward pass; see `ResidentModel.differentiate`.
            weights: Task → weight of each of its items, see `GradientCard`; default: those of the suite.
            seconds: Timings of earlier steps to keep on the card.

        Raises:
            CandidateError: The model's outputs or its gradient are not finite, or its configuration is not supported.
            SuiteError: The batch cannot be frozen, or its fitness has no gradient.
        """
        assert not model.training, "dropout would be scored"
        fitness, plan = self._fitness(batch)
        started = time.perf_counter()
        each = item_weights({task.spec.name: task.count for task in fitness.tasks}, fitness.weights, weights)
        found = differentiate(model, plan, fitness, each)
        gradient = total()
        spent = {**(seconds or {}), "score": time.perf_counter() - started}
        modes = {"loglikelihood": found.mode} if found.mode else {}
        return gradient_card(batch, found.values, each, gradient, found.tokens, spent, modes)

    def _fitness(self, batch: ItemBatch) -> tuple[ItemFitness, LoglikelihoodPlan]:
        """Return the fitness of a batch's items and the plan of the requests that it needs, created on first use.

        Raises:
            SuiteError: The fitness has no gradient.
        """
        frozen = self.plans(batch)[0]
        if batch.digest not in self._gradients:
            if frozen.fitness == "score":
                raise SuiteError(self.suite.where("fitness"), "score has no gradient", next="Set expected_score")
            fitness = frozen.item_fitness(frozen.fitness)
            if fitness.generated is not None:
                what = f"'{fitness.generated}' is answered by generated text, which has no gradient"
                next_step = "Use an optimizer that needs no gradients, or `fitness: gold_logprob`"
                raise SuiteError(self.suite.where("fitness"), what, next=next_step)
            self._gradients[batch.digest] = fitness, lay_out(fitness.requests, self.options)
        return self._gradients[batch.digest]

    def _answers(self, model: Any, frozen: FrozenBatch, found: Likelihoods, texts: list[str]) -> tuple[Answers, Tokens]:
        """The answers with those of the second pass, and its token counts."""
        second = frozen.second_pass(texts)
        more = score_loglikelihoods(model, lay_out(second.requests, self.options))
        lls, margins = np.concatenate([found.lls, more.lls]), np.concatenate([found.margins, more.margins])
        return Answers(lls, found.greedy, texts, margins, second), more.tokens

    def plans(self, batch: ItemBatch) -> Plans:
        """Return the frozen batch and the plans of its two kinds of requests, created on first use.

        Raises:
            SuiteError: See `Harness.freeze`.
        """
        if batch.digest not in self._plans:
            frozen = self.harness.freeze(batch, self._tokenizer, self._max_length)
            self._plans[batch.digest] = self._plan(taught(frozen, self._lessons.get(batch.split, {})))
        return self._plans[batch.digest]

    def frozen_for(self, batch: ItemBatch, fitness: FitnessKind) -> FrozenBatch:
        """Return a frozen batch with right answers for another kind of fitness than the suite's; it is not kept.

        Raises:
            SuiteError: See `Harness.freeze`.
        """
        return self.harness.freeze(batch, self._tokenizer, self._max_length, fitness)

    def _plan(self, frozen: FrozenBatch) -> Plans:
        generations = lay_out_generations(frozen.generations, frozen.decoder, self.options)
        return frozen, lay_out(frozen.loglikelihoods, self.options), generations
