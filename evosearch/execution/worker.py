"""The worker: one device that turns recipes into score cards.

Everything that does not change between candidates is done once, in the constructor: parents are mapped, the model
skeleton is built, tasks are loaded. A job then writes the candidate into the resident model and scores it. The worker
knows nothing of search.
"""

import os
import socket
import time
import traceback
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from evosearch.errors import CandidateError, CheckpointError, SearchError
from evosearch.evaluation.engine.loglikelihood import ScoreOptions
from evosearch.evaluation.engine.out_of_memory import out_of_memory
from evosearch.evaluation.harness.harness import Harness, max_length_of
from evosearch.evaluation.harness.scorer import Scorer
from evosearch.evaluation.suites.suite import Suite
from evosearch.execution import memory
from evosearch.execution.device import device_of, lost, spread_of
from evosearch.execution.node import prepare_node
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.layout import Output, output
from evosearch.materialize.plan import donor_of
from evosearch.materialize.routed import ResidentRoute
from evosearch.recipe.schema import Recipe
from evosearch.search.protocols import Failure, Job, Outcome

Progress = Callable[[str, float], None]
Resident = ResidentModel | ResidentRoute


@dataclass(frozen=True)
class WorkerConfig:
    """All a worker needs to build itself on any node: names and plain data, no weights.

    Where the recipes are routes, `recipe` is one that names every model, and need make no sense otherwise.
    `device` is `auto`, `cpu` or `cuda`; `threads` the CPU threads of one worker, 0 for torch's own choice.
    """

    recipe: dict[str, Any]  # any recipe of those to come: which models they name, how they stack their layers
    suite: dict[str, Any]
    cache: Path
    out_dtype: str = "float32"
    device: str = "auto"
    threads: int = 0
    options: ScoreOptions = field(default_factory=ScoreOptions)
    gpu_share: float = 1.0  # below 1 a part of one GPU; 2 or more: as many, and the model is spread over them
    allow_pickle: bool = False
    also: tuple[str, ...] = ()  # further models, which only baselines name
    recipes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # reference → recipe, of models that are one
    inputs: Mapping[str, str] = field(default_factory=dict)  # reference → content_sha256, where it is to be checked
    files: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # reference → file beside the weights → sha256
    resolvers: tuple[str, ...] = ("evosearch.zoo",)  # modules whose `register()` adds reference schemes

    def with_gpus(self, gpus: float) -> "WorkerConfig":
        """The same for workers that are given so many GPUs: those do not score on a CPU because torch sees none."""
        return replace(self, device="cuda") if gpus and self.device == "auto" else self

    def worker(self) -> "Worker":
        """The worker that this describes, built in this process."""
        return Worker(self)


class Worker:
    """One device with a resident model and its parents, ready to score recipes; or several, for a model that is larger.

    How much runs at once is measured on a GPU, where the options leave it open, and halved when memory runs out.

    Args:
        harness: of the suite, where this process has loaded it already: its tasks take long to load.

    Raises:
        InputError: a model cannot be had or built, the suite cannot be loaded, or there are fewer GPUs than asked for.
    """

    def __init__(self, config: WorkerConfig, progress: Progress | None = None, harness: Harness | None = None) -> None:
        started = time.monotonic()
        if config.threads:
            torch.set_num_threads(config.threads)
        register_schemes(config.resolvers)
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.device = device_of(config.device)
        self._share = config.gpu_share
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
        self._at_work = self.scorer  # the one that was asked last
        self._asked = config.options
        self._measuring = config.options.batch_tokens is None and self.device.type == "cuda"
        self._measured_beside: weakref.ref[Resident] | None = None  # the resident model that readings are of
        self._found: memory.Measured | None = None
        self.load_seconds = time.monotonic() - started

    def run(self, job: Job) -> Outcome:
        """Score one job. Never raises for what a candidate does wrong: that is an outcome, too.

        Where memory runs out while scoring, half as much runs at once from then on, and the same job again; each such
        change is one of the outcome's `retries`. Where it runs out all the same, the job fails by the worker's fault.

        Raises:
            SearchError: the GPU is of no more use to this process, which has to end. Any job would fail from then on.
        """
        changes: list[Failure] = []
        while True:
            outcome = self._attempt(job)
            failure = outcome.failure
            if failure is None or failure.fault != "worker":
                return replace(outcome, retries=tuple(changes))
            memory.release(self.devices)  # here, where no error holds on to what it was raised amid
            reason = self._lower() if failure.stage == "score" else None
            if reason is None:
                return replace(outcome, retries=tuple(changes))
            changes.append(replace(failure, reason=reason))

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """The device of this worker, or all that its model is spread over."""
        return (self.device,) if self._over is None else self._over.devices

    @property
    def options(self) -> ScoreOptions:
        """How much this worker runs at once now."""
        return self.scorer.options

    def measured(self) -> dict[str, Any]:
        """How much this worker runs at once, and what its cards were found to hold: see `memory.described`."""
        return memory.described(self.options, self.device, self._found)

    def _attempt(self, job: Job) -> Outcome:
        """Materialize and score once. A failure by the worker's fault is memory that ran out.

        Raises:
            SearchError: see `run`.
        """
        stage = "materialize"
        try:
            resident, laid = self._resident(job.recipe)
            seconds = {"materialize": resident.materialize(job.recipe, laid)}
            stage = "score"
            self._measure(resident)
            self._at_work = self._scorer(resident)
            card = self._at_work.score(resident.model, job.batch, seconds)
        except Exception as exc:
            if (reason := lost(exc)) is not None:
                raise SearchError(f"{self.name}: its GPU is of no more use to it: {reason}") from exc
            failure = _failure(exc, stage)
        else:
            return Outcome(job, self.name, card=card, seconds=card.seconds)
        return Outcome(job, self.name, failure=failure)

    def _measure(self, resident: Resident) -> None:
        """Run as much at once as the cards hold beside a resident model, found out when it is first scored."""
        beside = self._measured_beside and self._measured_beside()
        if not self._measuring or beside is resident:
            return
        length, asked = max_length_of(resident.model.config, self._tokenizer), self._asked
        found = memory.measure(resident.model, self.devices, self._share, length, asked)
        self._found, self._measured_beside = found, weakref.ref(resident)
        self._use(replace(asked, batch_tokens=found.tokens, cached_tokens=found.cached))

    def _lower(self) -> str | None:
        """Run half as much at once from now on: the reason to record, or None where it is the least already."""
        before = (self.options.budget(self.device).tokens, self.options.cached_tokens)
        after = memory.halved(*before, self._at_work.caching)
        if after is None:
            return None
        self._measuring = False  # what was measured was too much
        self._use(replace(self.options, batch_tokens=after[0], cached_tokens=after[1]))
        return memory.changed(before, after)

    def _use(self, options: ScoreOptions) -> None:
        if options != self.options:
            for scorer in self._scorers.values():
                scorer.use(options)

    def _resident(self, recipe: Recipe) -> tuple[Resident, Output | None]:
        """The model that a recipe's export would be: the candidates' own, or one built for baselines like this.

        Beside the candidates' model there is one other at most, and none once a candidate is scored again.
        """
        if not set(recipe.references()) <= self.checkpoints.keys():
            return self.resident, None  # which says what is not loaded
        laid = output(recipe, self.checkpoints)
        if _takes(self.resident, recipe, laid):
            self._other = None
            return self.resident, laid
        if self._other is None or not _takes(self._other, recipe, laid):
            self._other = None  # before the next one is built: its memory is needed
            self._other = self._built(recipe, beside=self.resident)
        return self._other, laid

    def _built(self, example: Recipe, beside: Resident | None = None) -> Resident:
        """The resident model for recipes like the example: routes share layers, merges overwrite weights."""
        if example.routing is not None:
            return ResidentRoute(self.checkpoints, example, self.device, self._compute_type, self._over)
        parents = beside if isinstance(beside, ResidentModel) else None
        return ResidentModel(
            self.checkpoints, donor_of(example), self.device, self._compute_type, example, parents, self._over
        )

    def _scorer(self, resident: Resident) -> Scorer:
        """The scorer for a model's context length: prompts are cut to it as lm-eval cuts them for the export."""
        length = max_length_of(resident.model.config, self._tokenizer)
        if length not in self._scorers:
            known = self.scorer
            self._scorers[length] = Scorer(known.suite, self._tokenizer, length, known.options, known.harness)
        return self._scorers[length]

    def _compute_dtype(self, out_dtype: str) -> torch.dtype:
        """Weights are always rounded to `out_dtype`; a CPU then computes in float32, where bfloat16 is slow."""
        return torch.float32 if self.device.type == "cpu" else getattr(torch, out_dtype)


def _takes(resident: Resident, recipe: Recipe, laid: Output) -> bool:
    """Whether a resident model can become what a recipe's export would be."""
    return isinstance(resident, ResidentRoute) == (recipe.routing is not None) and resident.holds(laid)


def _failure(exc: Exception, stage: str) -> Failure:
    """What went wrong with a candidate, and whose fault it is; to be called where it is caught."""
    if isinstance(exc, CandidateError):
        return Failure(exc.stage, exc.reason, traceback.format_exc())
    full = out_of_memory(exc)
    reason = f"out of memory: {exc}" if full else f"{type(exc).__name__}: {exc}"
    return Failure(stage, reason, traceback.format_exc(), "worker" if full else "candidate")


def load_tokenizer(folder: Path) -> Any:
    """The tokenizer of a model folder; nothing in the folder is executed."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as exc:  # the tokenizers library raises the plain class for a damaged file
        reason = next(iter(str(exc).splitlines()), type(exc).__name__)
        raise CheckpointError(str(folder), f"no usable tokenizer: {reason}", next="Add its tokenizer files") from exc


def register_schemes(modules: tuple[str, ...] = ("evosearch.zoo",)) -> None:
    """Let the named modules add their reference schemes (`zoo:`) in this process."""
    from importlib import import_module

    for module in modules:
        import_module(module).register()
