"""The worker: one device that turns recipes into score cards.

Everything that does not change between candidates is done once, in the constructor: parents are mapped, the model
skeleton is built, tasks are loaded. A job then writes the candidate into the resident model and scores it. The worker
knows nothing of search.
"""

import os
import socket
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from evosearch.errors import CandidateError, CheckpointError
from evosearch.evaluation.harness import Harness, max_length_of
from evosearch.evaluation.loglikelihood import ScoreOptions
from evosearch.evaluation.scorer import Scorer
from evosearch.evaluation.suite import Suite
from evosearch.materialize.in_memory import ResidentModel
from evosearch.materialize.inputs import Opener
from evosearch.materialize.layout import Output, output
from evosearch.materialize.plan import donor_of
from evosearch.materialize.routed import ResidentRoute
from evosearch.recipe.schema import Recipe
from evosearch.search.ports import Failure, Job, Outcome

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
    allow_pickle: bool = False
    also: tuple[str, ...] = ()  # further models, which only controls name
    resolvers: tuple[str, ...] = ("evosearch.zoo",)  # modules whose `register()` adds reference schemes


class Worker:
    """One device with a resident model and its parents, ready to score recipes.

    Args:
        harness: of the suite, where this process has loaded it already: its tasks take long to load.
    """

    def __init__(self, config: WorkerConfig, progress: Progress | None = None, harness: Harness | None = None) -> None:
        started = time.monotonic()
        if config.threads:
            torch.set_num_threads(config.threads)
        register_schemes(config.resolvers)
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self.device = _device(config.device)
        example = Recipe.model_validate(config.recipe)
        self.checkpoints = Opener(config.cache, progress, config.allow_pickle).inputs(example, config.also)
        donor = next(iter(self.checkpoints))
        self._compute_type = self._compute_dtype(config.out_dtype)
        self.resident = self._built(example)
        self._other: Resident | None = None  # for a control with other layers or another config than candidates
        self._tokenizer = load_tokenizer(self.checkpoints[donor].tokenizer_folder)
        length = max_length_of(self.resident.model.config, self._tokenizer)
        self.scorer = Scorer(Suite.model_validate(config.suite), self._tokenizer, length, config.options, harness)
        self._scorers = {length: self.scorer}  # by context length in tokens
        self.load_seconds = time.monotonic() - started

    def run(self, job: Job) -> Outcome:
        """Score one job. Never raises for what a candidate does wrong: that is an outcome, too."""
        stage = "materialize"
        try:
            resident, laid = self._resident(job.recipe)
            seconds = {"materialize": resident.materialize(job.recipe, laid)}
            stage = "score"
            card = self._scorer(resident).score(resident.model, job.batch, seconds)
        except CandidateError as exc:
            failure = Failure(exc.stage, exc.reason, traceback.format_exc())
        except torch.OutOfMemoryError as exc:
            failure = Failure(stage, f"out of memory: {exc}", traceback.format_exc(), "worker")
        except Exception as exc:
            failure = Failure(stage, f"{type(exc).__name__}: {exc}", traceback.format_exc())
        else:
            return Outcome(job, self.name, card=card, seconds=card.seconds)
        return Outcome(job, self.name, failure=failure)

    def _resident(self, recipe: Recipe) -> tuple[Resident, Output | None]:
        """The model that a recipe's export would be: the candidates' own, or one built for controls like this.

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
            return ResidentRoute(self.checkpoints, example, self.device, self._compute_type)
        parents = beside if isinstance(beside, ResidentModel) else None
        return ResidentModel(
            self.checkpoints, donor_of(example), self.device, self._compute_type, example, beside=parents
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


def _device(asked: str) -> torch.device:
    if asked == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(asked)
