"""Scores models on the items of a suite: everything that does not depend on the weights is done once.

    scorer = Scorer(suite, tokenizer, max_length_of(model.config, tokenizer))
    card = scorer.score(model, scorer.batch("search"))

From the second score of a batch on, nothing is tokenized, opened or rebuilt.
"""

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evosearch.evaluation.engine.generation import GenerationPlan, generate, lay_out_generations
from evosearch.evaluation.engine.loglikelihood import LoglikelihoodPlan, ScoreOptions, lay_out, score_loglikelihoods
from evosearch.evaluation.harness.frozen import Answers, FrozenBatch
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.statistics.scores import make_card
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import ItemBatch, ScoreCard

_Laid = tuple[FrozenBatch, LoglikelihoodPlan, GenerationPlan]


class Scorer:
    """The items of a suite, frozen for one tokenizer.

    Args:
        suite: what is measured.
        tokenizer: the transformers tokenizer that the candidates share.
        max_length: their context length in tokens (`harness.max_length_of`).
        options: how much is run at once.
        harness: of the suite, where it is loaded already.

    Raises:
        SuiteError: see `Harness`.
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
        self._laid: dict[str, _Laid] = {}
        self.caching = False  # whether what is run now, or was run last, holds keys and values of many rows

    def use(self, options: ScoreOptions) -> None:
        """Run other amounts at once from now on: what is frozen stays, and is laid out anew when it is scored."""
        self.options = options
        for digest, (frozen, _, _) in self._laid.items():
            self._laid[digest] = self._planned(frozen)

    def batch(self, split: str) -> ItemBatch:
        """All items of a split."""
        return self.harness.batch(split)

    def prepare(self, batch: ItemBatch) -> None:
        """Freeze and lay out a batch ahead of its first score.

        Raises:
            SuiteError: see `Harness.freeze`.
        """
        self._lay_out(batch)

    def score(self, model: Any, batch: ItemBatch, seconds: Mapping[str, float] | None = None) -> ScoreCard:
        """The score card of a model on a batch of items, a split's or any part of it.

        Args:
            model: a causal transformers model in evaluation mode, on the device it is to run on.
            seconds: timings of the steps before (`load`, `materialize`), kept on the card.

        Raises:
            CandidateError: the model's answers are not finite, or its configuration asks for more than is scored.
            SuiteError: the batch cannot be frozen, or a metric is not in [0, 1].
        """
        assert not model.training, "dropout would be scored"
        frozen, plan, generations = self._lay_out(batch)
        started = time.perf_counter()
        self.caching = bool(plan.requests) and plan.mode(model) == "prefix"
        lls, greedy, tokens = score_loglikelihoods(model, plan)
        self.caching = bool(generations.requests)
        texts, generated = generate(model, generations)
        judged = self.harness.collect(frozen, Answers(lls, greedy, texts))
        spent = {**(seconds or {}), "score": time.perf_counter() - started}
        columns = {task: found.columns for task, found in judged.items()}
        reported = {task: found.reported for task, found in judged.items()}
        card = make_card(self.suite, batch, columns, tokens + generated, spent, reported)
        modes: dict[str, LoglikelihoodPlan | GenerationPlan] = {"loglikelihood": plan, "generation": generations}
        return replace(card, modes={kind: plan.mode(model) for kind, plan in modes.items() if plan.requests})

    def _lay_out(self, batch: ItemBatch) -> _Laid:
        if batch.digest not in self._laid:
            frozen = self.harness.freeze(batch, self._tokenizer, self._max_length)
            self._laid[batch.digest] = self._planned(frozen)
        return self._laid[batch.digest]

    def _planned(self, frozen: FrozenBatch) -> _Laid:
        generations = lay_out_generations(frozen.generations, frozen.decoder, self.options)
        return frozen, lay_out(frozen.loglikelihoods, self.options), generations
