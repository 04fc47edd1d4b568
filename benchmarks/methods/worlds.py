"""Models and documents that methods are measured on, those of the board's problems, with one worker in this process."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import yaml

from benchmarks.board.entries import Given, Json
from benchmarks.board.problems import sentences, zoo
from evosearch.checkpoints.reader import CONFIG, Checkpoint
from evosearch.checkpoints.tokenizers.loading import load_tokenizer
from evosearch.errors import CandidateError
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.statistics.bootstrap import bootstrap_difference
from evosearch.evaluation.statistics.intervals import Interval, interval
from evosearch.evaluation.statistics.units import Groups
from evosearch.evaluation.suites.suite import Suite, load_suite
from evosearch.evaluation.types import Column, ItemBatch, ScoreCard
from evosearch.execution.worker import Worker
from evosearch.materialize.forward import settings
from evosearch.merging.registry import specs
from evosearch.moments.sampled_moments import SampledMoments
from evosearch.recipe.schema import Recipe
from evosearch.search.progress import Silent
from evosearch.search.protocols import Job
from evosearch.setup.executors import worker_config
from evosearch.setup.models import open_models
from evosearch.spec.config import WorkersConfig

from .sweep import recipe_of


@dataclass(frozen=True)
class Problem:
    """A problem of this benchmark.

    Attributes:
        text: One line for the table.
        documents: Split → documents per task; prompts of `search` are the sample of methods that need statistics.
        seeds: Seeds by default. Each draws other documents; on the zoo, each has models of its own.
        make: Seed and a folder for files → base, experts and suite.
    """

    text: str
    documents: Mapping[str, int]
    seeds: tuple[int, ...]
    make: Callable[[int, Path], Given]


PROBLEMS = {
    "zoo": Problem(
        "four experts of the tiny zoo, 1.1M parameters, trained from five seeds",
        {"search": 64, "validation": 200, "test": 1000},
        (0, 1, 2, 3, 4),
        zoo.make,
    ),
    "sentences": Problem(
        "three LoRA experts of SmolLM2-135M: sentiment, subjectivity, question type",
        {"search": 32, "validation": 100, "test": 400},
        (0,),
        lambda _, folder: sentences.PROBLEMS[0].make(folder),
    ),
}


class World:
    """The models and documents of a problem and seed.

    Args:
        given: Base, experts and suite.
        documents: Split → documents per task.
        seed: Seed of the splits, and of masks.
        folder: For the suite, the sample, and statistics of the models, which are computed once.
        threads: CPU threads.

    Attributes:
        harness: The tasks.
        sample: All tasks' prompts of the search split, as a recipe names them.

    Raises:
        InputError: A model or the suite cannot be loaded.
    """

    def __init__(self, given: Given, documents: Mapping[str, int], seed: int, folder: Path, threads: int) -> None:
        torch.set_num_threads(threads)
        folder = folder.resolve()
        self.given, self.seed, self._threads = given, seed, threads
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"methods-{seed}.yaml"
        data = {**given.suite, "documents": dict(documents), "split_seed": seed}
        file.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        self._suite: Suite = load_suite(file)
        self.harness = Harness(self._suite)
        self._batches: dict[str, ItemBatch] = {}
        self._texts = folder / f"sample-{seed}.jsonl"
        count = len(self.harness.batch("search"))
        self.sample: Mapping[str, Any] = {"text": str(self._texts), "documents": count}
        self._moments = SampledMoments(folder / "statistics")

    @cached_property
    def _worker(self) -> Worker:
        example = recipe_of(specs()["task_arithmetic"], {"weight": 1.0}, self.given.base, self.given.experts, 0)
        models = open_models(example, "methods", Silent())
        self._write_sample(models.checkpoints[models.donor])
        config = WorkersConfig(executor="local", threads=self._threads)
        return Worker(worker_config(config, models, self._suite, "float32"), harness=self.harness)

    def _write_sample(self, donor: Checkpoint) -> None:
        """Write the sample: a prompt of every task in turn."""
        tokenizer = load_tokenizer(donor.tokenizer_folder)
        length = max_length_of(settings(donor.config, str(donor.folder / CONFIG)), tokenizer)
        sets = self.harness.batch("search").sets
        tasks = [self.harness.prompts(own.task, "search", len(own), tokenizer, length) for own in sets]
        in_turn = [prompt for prompts in zip(*tasks, strict=True) for prompt in prompts]
        texts = tokenizer.batch_decode(in_turn, skip_special_tokens=True)  # which are added when the sample is read
        self._texts.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")

    def card(self, recipe: Recipe, split: str) -> ScoreCard:
        """Merge and score.

        Raises:
            CandidateError: The merge failed.
        """
        if split not in self._batches:
            self._batches[split] = self.harness.batch(split)
        if recipe.sample is not None:
            self._moments.attach(recipe.sample, self._worker.checkpoints, recipe)
        outcome = self._worker.run(Job(f"method@{split}", recipe, self._batches[split]))
        if outcome.card is None:
            assert outcome.failure is not None
            raise CandidateError(outcome.failure.stage, outcome.failure.reason)
        return outcome.card

    @cached_property
    def uniform(self) -> ScoreCard:
        """The uniform average of all experts on `test`."""
        average = recipe_of(specs()["linear"], {"weight": 1.0}, self.given.base, self.given.experts, 0)
        return self.card(average, "test")

    def shown(self, card: ScoreCard) -> Json:
        """Score on test with its two-sided 95% interval, and the metric of each task."""
        found = interval(_columns(card), self._suite.weights(), self._chances, self._groups)
        tasks = {name: round(100 * task.value, 2) for name, task in card.tasks.items()}
        return {"score": _plain(found), "tasks": tasks}

    def lead(self, card: ScoreCard, other: ScoreCard) -> list[float]:
        """Lead in points of score on test, with a paired 95% interval."""
        own, others = _columns(card), _columns(other)
        return _plain(bootstrap_difference(own, others, self._suite.weights(), self._chances, self._groups))

    @property
    def _chances(self) -> dict[str, float]:
        weights = self._suite.weights()
        return {task.name: task.chance for task in self._suite.tasks if task.name in weights}

    @property
    def _groups(self) -> Groups:
        return {items.task: items.groups for items in self._batches["test"].sets if items.groups}


def _columns(card: ScoreCard) -> dict[str, Column]:
    return {task: card.columns[task][entry.metric] for task, entry in card.tasks.items()}


def _plain(found: Interval) -> list[float]:
    return [round(found.value, 3), round(found.lower, 3), round(found.upper, 3)]
