"""Everything that could stop a run, found before it starts; and what a run would take."""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import psutil

from evosearch.checkpoints.digest import DTYPES
from evosearch.errors import InputError, LedgerError, SpecError
from evosearch.evaluation.harness import Harness
from evosearch.evaluation.suite import load_suite
from evosearch.evaluation.types import SPLITS
from evosearch.execution.worker import Worker
from evosearch.merging.registry import specs
from evosearch.promotion.validate import RESCORED
from evosearch.recipe import checks, files
from evosearch.recipe.schema import Recipe
from evosearch.search.ledger import Ledger
from evosearch.search.ports import Job
from evosearch.search.watching import Watcher
from evosearch.service.cost import cost, reckoned, summed
from evosearch.service.executors import worker_config, worker_count
from evosearch.service.models import Models, open_models
from evosearch.service.outlook import hardly_decided
from evosearch.service.paths import places_of, recorded_names, stage_places
from evosearch.service.prepare import Prepared, prepare
from evosearch.service.sizes import sizes_of
from evosearch.service.spec import STAGE, SearchSpec, Winner, is_spec, is_suite
from evosearch.service.staged import StagedSpec, load
from evosearch.service.stand_ins import kept_for_now, merged
from evosearch.service.tokens import count_for
from evosearch.service.warm_start import found_before

T = TypeVar("T")
GIB = 2.0**30


@dataclass
class _Findings:
    problems: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, step: Callable[[], T]) -> T | None:
        """The step's result, or None and a problem on the list."""
        try:
            return step()
        except InputError as exc:
            found = {"where": exc.where, "what": exc.what, "allowed": exc.allowed, "next": exc.next}
            if found not in self.problems:
                self.problems.append(found)
            return None

    def rename(self, shown: Mapping[str, str]) -> None:
        """Names in place of files that are there for the check alone."""
        for path, name in shown.items():
            self.notes = [text.replace(path, name) for text in self.notes]
            for problem in self.problems:
                problem |= {key: text and text.replace(path, name) for key, text in problem.items()}

    def result(self, memory: dict[str, Any], forecast: dict[str, Any]) -> dict[str, Any]:
        data = {"ok": not self.problems, "problems": self.problems, "notes": self.notes}
        return data | {"memory": memory, "forecast": forecast}


def check(
    path: Path,
    trial: bool,
    watcher: Watcher,
    allow_pickle: bool = False,
    model: str | None = None,
    weights: bool = True,
) -> dict[str, Any]:
    """All problems of a spec, a recipe or a suite, in one list; what `evosearch check --json` prints.

    Args:
        trial: score one candidate of a spec, for time and memory.
        allow_pickle: read pickled weights where a model has no others.
        model: for a suite, whose tokenizer counts its tokens.
        weights: without them only configs and tokenizers of a spec's models are fetched, which is enough for its cost.
    """
    findings = _Findings()
    suite = findings.attempt(lambda: is_suite(path))
    kind = findings.attempt(lambda: is_spec(path))
    if suite is None or kind is None:
        return findings.result({}, {})
    if suite:
        return _check_suite(path, model, watcher, findings)
    if model is not None:
        findings.attempt(lambda: _refuse_model(path))
    if kind and not weights:
        return _check_cost(path, watcher, findings)
    if kind:
        return _check_spec(path, trial, watcher, findings, allow_pickle)
    return _check_recipe(path, watcher, findings, allow_pickle)


def _refuse_model(path: Path) -> None:
    what = f"goes with a suite, and {path} is none: it names its own models"
    raise SpecError("--model", what, next="Leave it out")


def _check_suite(path: Path, model: str | None, watcher: Watcher, findings: _Findings) -> dict[str, Any]:
    """Tasks, metrics, splits; with a model also what only its tokenizer can tell, and the tokens of a candidate."""
    suite = findings.attempt(lambda: load_suite(path))
    harness = findings.attempt(lambda: Harness(suite)) if suite is not None else None
    if harness is None:
        return findings.result({}, {})
    items = {split: len(harness.batch(split)) for split in SPLITS}
    findings.notes += hardly_decided(harness.suite, harness.batch("test"))
    if model is None:
        findings.notes.append(
            "how many tokens a candidate takes depends on the tokenizer: --model REFERENCE counts them"
        )
        return findings.result({}, {"tokens": {split: {"items": count} for split, count in items.items()}})
    tokens = findings.attempt(lambda: count_for(harness, model, watcher))
    return findings.result({}, {"tokens": {split: found.to_dict() for split, found in (tokens or {}).items()}})


def _check_cost(path: Path, watcher: Watcher, findings: _Findings) -> dict[str, Any]:
    """What a spec would take, before anything large is fetched."""
    spec = findings.attempt(lambda: load(path))
    harness = findings.attempt(lambda: Harness(spec.suite)) if spec is not None else None
    if spec is None or harness is None:
        return findings.result({}, {})
    with kept_for_now() as folder:
        found = findings.attempt(lambda: reckoned(spec, harness, watcher, folder))
        if isinstance(spec, StagedSpec):
            findings.rename({f"{folder / config.name}.yaml": f"{STAGE}{config.name}" for config in spec.config.stages})
    findings.notes.append("no weights were fetched or read: whether the models can be merged is not known yet")
    return findings.result({}, found or {})


def _check_recipe(path: Path, watcher: Watcher, findings: _Findings, allow_pickle: bool) -> dict[str, Any]:
    recipe = findings.attempt(lambda: files.load(path))
    if recipe is None:
        return findings.result({}, {})
    notes = findings.attempt(lambda: checks.check(recipe, specs(), f"{path}: "))
    findings.notes += notes or []
    models = findings.attempt(lambda: open_models(recipe, str(path), watcher, allow_pickle))
    if models is None:
        return findings.result({}, {})
    if notes is not None:  # else the plan would say the same again
        findings.attempt(lambda: models.plan(recipe, f"{path}: recipe"))
    findings.attempt(lambda: models.inputs)  # reads every weight: a damaged one is named here
    return findings.result(_memory(models), {})


def _check_spec(path: Path, trial: bool, watcher: Watcher, findings: _Findings, allow_pickle: bool) -> dict[str, Any]:
    spec = findings.attempt(lambda: load(path))
    if spec is None:
        return findings.result({}, {})
    findings.attempt(lambda: _check_ledger(spec))
    findings.attempt(lambda: worker_count(spec.config.workers))
    harness = findings.attempt(lambda: Harness(spec.suite))
    searching = _Searching(findings, trial, watcher, allow_pickle, harness)
    if isinstance(spec, StagedSpec):
        return findings.result(*_check_stages(spec, searching))
    return findings.result(*(searching.check(spec)[1:]))


def _check_stages(spec: StagedSpec, searching: "_Searching") -> tuple[dict[str, Any], dict[str, Any]]:
    """Every stage, with the start of an earlier one in place of its winner.

    Returns:
        Memory of the largest, and the forecast: what is used up is added, figures of one candidate are the last
        stage's, and `stages` has those of each.
    """
    winners: dict[str, Winner] = {}
    memory: dict[str, Any] = {}
    forecasts: dict[str, dict[str, Any]] = {}
    with kept_for_now() as folder:
        for index, config in enumerate(spec.config.stages):
            stage = searching.findings.attempt(partial(spec.stage, index, winners))
            prepared, own, forecast = searching.check(stage) if stage is not None else (None, {}, {})
            if prepared is None:  # nothing that later ones could build on
                break
            memory = max(memory, own, key=lambda found: found.get("needed_gib", 0.0))
            forecasts[config.name] = forecast
            if index == spec.count - 1:
                break
            winner = searching.findings.attempt(partial(merged, config.name, prepared, folder, searching.watcher))
            if winner is None:
                break
            winners[config.name] = winner
        searching.findings.rename({str(winner.file): f"{STAGE}{name}" for name, winner in winners.items()})
    if len(forecasts) < spec.count:
        return memory, {}
    hours = [forecast.get("total_hours") for forecast in forecasts.values()]
    total = dict(next(reversed(forecasts.values()))) | {"stages": forecasts}
    total["cost"] = summed({name: forecast["cost"] for name, forecast in forecasts.items()})
    if "total_hours" in total:
        total["total_hours"] = None if None in hours else sum(hour for hour in hours if hour is not None)
    return memory, total


@dataclass
class _Searching:
    """How one search of a spec is checked."""

    findings: _Findings
    trial: bool
    watcher: Watcher
    allow_pickle: bool
    harness: Harness | None

    def check(self, spec: SearchSpec) -> tuple[Prepared | None, dict[str, Any], dict[str, Any]]:
        """What is prepared of it, its memory and its forecast; nothing of one that cannot be prepared."""
        findings, watcher = self.findings, self.watcher
        prepared = findings.attempt(lambda: prepare(spec, watcher, self.allow_pickle, self.harness))
        if prepared is None:
            return None, {}, {}
        findings.attempt(lambda: _check_warm_start(prepared, watcher))
        findings.notes += [
            text
            for text in hardly_decided(prepared.suite, prepared.batches["test"])
            if text not in findings.notes  # of an earlier stage
        ]
        memory = _memory(prepared.models, prepared.largest, another=_another(prepared))
        if memory["needed_gib"] > memory["available_gib"]:
            needed, free = (f"{memory[key]:.1f} GiB" for key in ("needed_gib", "available_gib"))
            findings.notes.append(f"one worker needs about {needed} and {free} are free here")
        trial = self.trial and findings.problems == []
        forecast = findings.attempt(lambda: _forecast(prepared)) if trial else {}
        tokens = {split: found.to_dict() for split, found in prepared.tokens.items()}
        gate = spec.stage is None or spec.stage.last
        taken = cost(spec, sizes_of(spec, watcher), prepared.tokens, prepared.controls, gate)
        return prepared, memory, {"tokens": tokens, "cost": taken} | (forecast or {})


def _check_warm_start(prepared: Prepared, watcher: Watcher) -> None:
    """What it starts from is there, or is an earlier stage that is yet to run."""
    spec = prepared.spec
    named = spec.config.optimizer.warm_start
    own = spec.stage is not None and str(named).startswith(f"{spec.stage.whole}.")
    if not own or named in recorded_names(places_of(spec).ledger):
        found_before(prepared, watcher)


def _check_ledger(spec: SearchSpec | StagedSpec) -> None:
    """The ledger can be written, or does not exist yet in a place that can; nothing is created."""
    url = (places_of(spec) if isinstance(spec, SearchSpec) else stage_places(spec, 0)).ledger
    where = f"{spec.file}: ledger"
    if not url.startswith("sqlite:///"):
        with Ledger.open(url, where):
            return
    database = Path(url.removeprefix("sqlite:///"))
    nearest = next((folder for folder in database.parents if folder.exists()), None)
    if nearest is None:
        raise LedgerError(where, f"got '{url}'", "sqlite:///FILE, or the URL of a PostgreSQL database")
    if not nearest.is_dir():
        raise LedgerError(where, f"{nearest} is a file, not a folder", next="Choose another place for the ledger")
    if database.exists():
        with Ledger.open(url, where, read_only=True):
            return


def _another(prepared: Prepared) -> bool:
    """Whether a control is scored in a model of its own, beside the candidates'."""
    recipes = [control.recipe for control in prepared.controls if control.recipe is not None]
    return any(prepared.models.needs_another(recipe) for recipe in recipes)


def _memory(models: Models, largest: Recipe | None = None, another: bool = False) -> dict[str, Any]:
    """GiB on the host: the parents (mapped from disk, read once a candidate) and the resident model in float32.

    Args:
        largest: the candidate that takes most; None: the models' own recipe.
        another: a second resident model, of about the same size, stands beside it at times.
    """
    parents = sum(
        math.prod(info.shape) * DTYPES[info.dtype].itemsize
        for checkpoint in models.checkpoints.values()
        for name, info in checkpoint.tensors.items()
        if checkpoint.shares(name) is None  # an adapter's base is held once
    )
    resident = 4 * models.live_numbers(largest or models.recipe) * (2 if another else 1)
    available = psutil.virtual_memory().available
    gib = {"parents_gib": parents / GIB, "resident_gib": resident / GIB, "available_gib": available / GIB}
    return gib | {"needed_gib": (parents + resident) / GIB}


def _forecast(prepared: Prepared) -> dict[str, Any]:
    """Time of a candidate, taken from the second of two: the first also lays out what stays."""
    spec = prepared.spec
    count, _ = worker_count(spec.config.workers)
    config = worker_config(spec.config.workers, prepared.models, prepared.suite, prepared.example.output_dtype, count)
    worker = Worker(config, harness=prepared.harness)
    parts = prepared.parts.batches if prepared.parts else (prepared.batches["search"],)
    job = Job("trial@search", prepared.example, parts[0])
    worker.run(job)
    began = time.monotonic()
    outcome = worker.run(job)
    seconds = time.monotonic() - began
    if outcome.failure is not None:
        raise InputError(spec.where, f"a trial candidate fails: {outcome.failure.reason}")
    assert outcome.card is not None
    per_hour = 3600.0 / seconds * count
    budget = spec.config.budget
    extra = sum(control.recipe is not None for control in prepared.controls)
    if prepared.parts:  # controls and the best candidates are scored on all of them
        extra = len(parts) * (extra + RESCORED * spec.config.promotion.finalists)
    hours = [budget.hours] if budget.hours else []
    if budget.candidates:
        hours.append((budget.candidates + extra) / per_hour)
    if budget.items:
        hours.append((budget.items // len(parts[0]) + extra) / per_hour)
    return {
        "seconds_per_candidate": seconds,
        "candidates_per_hour": per_hour,
        "total_hours": min(hours) if hours else None,
        "workers": count,
        "dimensions": len(prepared.space.dimensions),
        "items": len(parts[0]),
        "tokens_per_candidate": outcome.card.tokens.forwarded,
    }
