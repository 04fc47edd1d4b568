"""Everything that could stop a run, found before it starts; and what a run would take."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from evosearch.checkpoints.digest import DTYPES
from evosearch.errors import InputError, LedgerError
from evosearch.evaluation.types import ItemBatch
from evosearch.execution.worker import Worker
from evosearch.merging.registry import specs
from evosearch.recipe import checks, files
from evosearch.search.controls import Control, controls
from evosearch.search.ledger import Ledger
from evosearch.search.ports import Job
from evosearch.search.watching import Watcher
from evosearch.service.executors import worker_config, worker_count
from evosearch.service.models import Models, open_models
from evosearch.service.paths import places_of
from evosearch.service.prepare import Prepared, load_batches, prepare
from evosearch.service.spec import SearchSpec, is_spec, load_spec

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

    def result(self, memory: dict[str, Any], forecast: dict[str, Any]) -> dict[str, Any]:
        data = {"ok": not self.problems, "problems": self.problems, "notes": self.notes}
        return data | {"memory": memory, "forecast": forecast}


def check(path: Path, trial: bool, watcher: Watcher, allow_pickle: bool = False) -> dict[str, Any]:
    """All problems of a spec or a recipe, in one list; what `evosearch check --json` prints.

    Args:
        trial: score one candidate of a spec, for time and memory.
        allow_pickle: read pickled weights where a model has no others.
    """
    findings = _Findings()
    kind = findings.attempt(lambda: is_spec(path))
    if kind is None:
        return findings.result({}, {})
    if kind:
        return _check_spec(path, trial, watcher, findings, allow_pickle)
    return _check_recipe(path, watcher, findings, allow_pickle)


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
    spec = findings.attempt(lambda: load_spec(path))
    if spec is None:
        return findings.result({}, {})
    findings.attempt(lambda: _check_ledger(spec))
    findings.attempt(lambda: worker_count(spec.config.workers))
    batches = findings.attempt(lambda: load_batches(spec.suite))
    prepared = findings.attempt(lambda: prepare(spec, watcher, allow_pickle))
    if prepared is None:
        return findings.result({}, {})
    memory = _memory(prepared.models)
    if memory["needed_gib"] > memory["available_gib"]:
        findings.notes.append(
            f"one worker needs about {memory['needed_gib']:.1f} GiB and {memory['available_gib']:.1f} GiB are free here"
        )
    forecast = findings.attempt(lambda: _forecast(prepared, batches or {})) if trial and findings.problems == [] else {}
    return findings.result(memory, forecast or {})


def _check_ledger(spec: SearchSpec) -> None:
    """The ledger can be written, or does not exist yet in a place that can; nothing is created."""
    url = places_of(spec).ledger
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


def _memory(models: Models) -> dict[str, Any]:
    """GiB on the host: the parents (mapped from disk, read once a candidate) and one resident model in float32."""
    parents = sum(
        math.prod(info.shape) * DTYPES[info.dtype].itemsize
        for checkpoint in models.checkpoints.values()
        for name, info in checkpoint.tensors.items()
        if checkpoint.shares(name) is None  # an adapter's base is held once
    )
    resident = sum(math.prod(size) * 4 for size in models.output.sizes.values())
    available = psutil.virtual_memory().available
    gib = {"parents_gib": parents / GIB, "resident_gib": resident / GIB, "available_gib": available / GIB}
    return gib | {"needed_gib": (parents + resident) / GIB}


def _controls(prepared: Prepared) -> list[Control]:
    return controls(prepared.example, prepared.spec.config.controls.scales, prepared.models.alike)


def _forecast(prepared: Prepared, batches: dict[str, ItemBatch]) -> dict[str, Any]:
    """Time of a candidate, taken from the second of two: the first also lays out what stays."""
    spec = prepared.spec
    count, _ = worker_count(spec.config.workers)
    config = worker_config(spec.config.workers, prepared.models, prepared.suite, prepared.example.output_dtype, count)
    worker = Worker(config)
    job = Job("trial@search", prepared.example, batches["search"])
    worker.run(job)
    began = time.monotonic()
    outcome = worker.run(job)
    seconds = time.monotonic() - began
    if outcome.failure is not None:
        raise InputError(spec.where, f"a trial candidate fails: {outcome.failure.reason}")
    assert outcome.card is not None
    per_hour = 3600.0 / seconds * count
    budget = spec.config.budget
    extra = sum(control.recipe is not None for control in _controls(prepared))
    hours = [budget.hours] if budget.hours else []
    if budget.candidates:
        hours.append((budget.candidates + extra) / per_hour)
    return {
        "seconds_per_candidate": seconds,
        "candidates_per_hour": per_hour,
        "total_hours": min(hours) if hours else None,
        "workers": count,
        "dimensions": len(prepared.space.dimensions),
        "items": len(batches["search"]),
        "tokens_per_candidate": outcome.card.tokens.forwarded,
    }
