"""The worker: scores recipes with one model in memory.

Work that is the same for all candidates is done once, in the constructor: parents are mapped, the model skeleton is
built, tasks are loaded. For each job, the candidate's weights are then written into the resident model, which is
scored. The worker is independent of the search.
"""

import os
import socket
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from evosearch.checkpoints.tokenizers.loading import load_tokenizer
from evosearch.errors import CandidateError, SearchError
from evosearch.evaluation.engine.out_of_memory import out_of_memory
from evosearch.evaluation.engine.score_options import ScoreOptions
from evosearch.evaluation.harness.fine_tuning import fine_tune
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.harness.teachers import Classroom
from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.suites.teacher_keys import TeacherFitness
from evosearch.evaluation.types import GradientCard, ItemBatch, Teacher, TrainingCard
from evosearch.execution import memory
from evosearch.execution.batch_limits import BatchLimits
from evosearch.execution.device import CUDA_ERROR, device_of, spread_of, unrecoverable
from evosearch.execution.loaders import register_schemes
from evosearch.execution.node import prepare_node
from evosearch.execution.worker_config import WorkerConfig
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.plan import donor_of
from evosearch.materialize.routed import ResidentRoute
from evosearch.recipe.schema import Recipe
from evosearch.search.protocols import Failure, Job, Outcome, Training

Progress = Callable[[str, float], None]
Resident = ResidentModel | ResidentRoute


class Worker:
    """A resident model and its parents on one device, or spread over several, ready to score recipes.

    On a GPU the batch size is measured unless the options fix it, and halved when memory runs out.

    Args:
        harness: The suite's harness, if this process has loaded it already; loading tasks is slow.

    Raises:
        InputError: A model cannot be fetched or built, the suite cannot be loaded, or there are too few GPUs.
    """

    def __init__(self, config: WorkerConfig, progress: Progress | None = None, harness: Harness | None = None) -> None:
        started = time.monotonic()
        if config.threads:
            torch.set_num_threads(config.threads)
        register_schemes(config.resolvers)
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._cache, self._progress = config.cache, progress or (lambda step, fraction: None)
        self.device = device_of(config.device)
        self._over = spread_of(self.device, config.gpu_share)
        memory.claim(self.device, config.gpu_share)
        example = Recipe.model_validate(config.recipe)
        self.checkpoints = prepare_node(config, progress)
        donor = next(iter(self.checkpoints))
        self._compute_type = self._compute_dtype(config.out_dtype)
        self.resident = self._built(example)
        self._other: Resident | None = None  # for a baseline with other layers or another config than candidates
        self._tokenizer = load_tokenizer(self.checkpoints[donor].tokenizer_folder)
        length = max_length_of(self.resident.model.config, self._tokenizer)
        self.scorer = Scorer(Suite.model_validate(config.suite), self._tokenizer, length, config.options, harness)
        self._scorers = {length: self.scorer}  # by context length in tokens
        self._latest_scorer = self.scorer
        self._limits = BatchLimits(config.options, self.devices, config.gpu_share)
        self.load_seconds = time.monotonic() - started

    def run(self, job: Job) -> Outcome:
        """Score one job. A candidate's errors are an outcome, not an exception.

        If memory runs out while scoring, the batch size is halved permanently and the job is run again; each such
        change is one of the outcome's `retries`. At the minimum batch size the job fails with fault `worker`.

        Raises:
            SearchError: An unrecoverable CUDA error. Every later job in this process would fail too, so it must exit.
        """
        changes: list[Failure] = []
        while True:
            outcome = self._attempt(job)
            failure = outcome.failure
            if failure is None or failure.fault != "worker":
                return replace(outcome, retries=tuple(changes))
            memory.release(self.devices)  # only here, after the traceback that keeps the failed attempt's tensors alive
            reason = self._halve_batches(job) if failure.stage == "score" else None
            if reason is None:
                return replace(outcome, retries=tuple(changes))
            changes.append(replace(failure, reason=reason))

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The device of this worker, or all devices that its model is spread over."""
        return (self.device,) if self._over is None else self._over.devices

    @property
    def options(self) -> ScoreOptions:
        """The current batch size limits."""
        return self.scorer.options

    def measured(self) -> dict[str, Any]:
        """Return the current limits and the measurement they are based on, see `memory.described`."""
        return self._limits.describe()

    def _attempt(self, job: Job) -> Outcome:
        """Materialize and score once. A failure with fault `worker` means that memory ran out.

        Raises:
            SearchError: See `run`.
        """
        stage, began = "materialize", time.monotonic()
        try:
            resident = self._resident(job.recipe)
            seconds = {"materialize": resident.materialize(job.recipe)}
            stage = "score"
            self._limits.measure(resident, max_length_of(resident.model.config, self._tokenizer))
            self._apply_limits()
            self._latest_scorer = self._scorer(resident)
            resident = self._taught(resident, job)
            if job.training is not None:
                return Outcome(job, self.name, training=self._train(resident, job.training, job.batch), seconds=seconds)
            if job.gradient is not None:
                slopes = self._differentiate(resident, job, job.gradient, seconds)
                return Outcome(job, self.name, gradient=slopes, seconds=slopes.seconds)
            card = self._latest_scorer.score(resident.model, job.batch, seconds)
        except Exception as exc:
            if (reason := unrecoverable(exc)) is not None:
                reason = reason.removeprefix(f"{CUDA_ERROR}: ")
                raise SearchError(f"{self.name}: unrecoverable {CUDA_ERROR}: {reason}") from exc
            failure = _failure(exc, stage)
        else:
            return Outcome(job, self.name, card=card, seconds=card.seconds)
        return Outcome(job, self.name, failure=failure, seconds={stage: time.monotonic() - began})

    def _differentiate(
        self, resident: Resident, job: Job, dimensions: int, seconds: Mapping[str, float]
    ) -> GradientCard:
        if not isinstance(resident, ResidentModel):
            raise CandidateError("materialize", "routes have no gradient: search them without one")
        with resident.differentiate(job.recipe, dimensions) as total:
            return self._latest_scorer.gradient(resident.model, job.batch, total, job.weights, seconds)

    def _train(self, resident: Resident, training: Training, batch: ItemBatch) -> TrainingCard:
        """Fine-tune and score the resident model; the next job overwrites its weights."""
        scorer = self._latest_scorer
        scorer.caching = True  # activations take the memory, so smaller batches help
        try:
            return fine_tune(scorer, resident.model, batch, training.items, training.seed, training.scored)
        finally:
            if isinstance(resident, ResidentModel):
                resident.forget()

    def _taught(self, resident: Resident, job: Job) -> Resident:
        """Let the scorer learn from the job's teachers, and return the resident model with the job's weights again.

        The first worker of a node that needs a lesson loads the teacher into its resident model; the others wait.
        """
        fitness = self.scorer.suite.fitness
        if not job.teachers or not isinstance(fitness, TeacherFitness):
            return resident
        called = list[Teacher]()

        def model_of(teacher: Teacher) -> Any:
            called.append(teacher)
            own = self._resident(teacher.recipe)
            own.materialize(teacher.recipe)
            return own.model

        note = partial(self._progress, "waiting for another worker's teachers", 0.0)
        classroom = Classroom(self._cache, fitness.top_k, self.options, model_of, note)
        self._latest_scorer.learn(job.batch, job.teachers, classroom)
        if called:
            resident = self._resident(job.recipe)
            resident.materialize(job.recipe)
        return resident

    def _halve_batches(self, job: Job) -> str | None:
        """Halve the batch size; return the reason to record, or None at the minimum."""
        backwards = job.gradient is not None or job.training is not None
        reason = self._limits.halve(self._latest_scorer.caching, backwards)
        self._apply_limits()
        return reason

    def _apply_limits(self) -> None:
        if self._limits.options != self.options:
            for scorer in self._scorers.values():
                scorer.use(self._limits.options)

    def _resident(self, recipe: Recipe) -> Resident:
        """Return the resident model with the layers and config of a recipe's export.

        This is the candidates' model, or a second one for baselines with other layers or another config. There is at
        most one second model, and it is dropped when the next candidate is scored.
        """
        if not set(recipe.references()) <= self.checkpoints.keys():
            return self.resident  # materializing the recipe raises an error that names the missing model
        if self.resident.takes(recipe):
            self._other = None
            return self.resident
        if self._other is None or not self._other.takes(recipe):
            self._other = None  # first, because the new one needs its memory
            self._other = self._built(recipe, share_with=self.resident)
        return self._other

    def _built(self, example: Recipe, share_with: Resident | None = None) -> Resident:
        """Build the resident model for recipes like the example; routes share layers, merges overwrite weights."""
        if example.routing is not None:
            return ResidentRoute(self.checkpoints, example, self.device, self._compute_type, self._over)
        parents = share_with if isinstance(share_with, ResidentModel) else None
        return ResidentModel(
            self.checkpoints, donor_of(example), self.device, self._compute_type, example, parents, self._over
        )

    def _scorer(self, resident: Resident) -> Scorer:
        """Return the scorer for a model's context length; prompts are truncated to it, as in lm-eval for the export."""
        length = max_length_of(resident.model.config, self._tokenizer)
        if length not in self._scorers:
            known = self.scorer
            self._scorers[length] = Scorer(known.suite, self._tokenizer, length, known.options, known.harness)
        return self._scorers[length]

    def _compute_dtype(self, out_dtype: str) -> torch.dtype:
        """Return the dtype of forward passes. Weights are rounded to `out_dtype`, but bfloat16 is slow on a CPU."""
        return torch.float32 if self.device.type == "cpu" else getattr(torch, out_dtype)


def _failure(exc: Exception, stage: str) -> Failure:
    """Describe the exception being handled, with the candidate or the worker at fault."""
    if isinstance(exc, CandidateError):
        return Failure(exc.stage, exc.reason, traceback.format_exc())
    full = out_of_memory(exc)
    reason = f"out of memory: {exc}" if full else f"{type(exc).__name__}: {exc}"
    return Failure(stage, reason, traceback.format_exc(), "worker" if full else "candidate")
