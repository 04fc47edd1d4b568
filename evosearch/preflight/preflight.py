"""Everything that could stop a search, looked for before it starts: all of it on one list.

Nothing of it is left behind but what it begins with: models that are fetched, and recipes merged in place of models, in
their caches. What stands in for the winner of an earlier stage goes again.

| branch | is left out where |
|---|---|
| ledger, workers, tracking, what the file says | never |
| suite: tasks, documents, splits | it cannot be loaded |
| room for what is fetched; models and how they fit; space, baselines, prompts | what each needs is not there |
| licences | a model cannot be had |
| room for what is written, memory, warm start, what is on record | any of these is wrong |
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evosearch.errors import InputError, LedgerError, TrackingError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.types import SPLITS
from evosearch.preflight import resources
from evosearch.preflight.cost import cost, counts_of
from evosearch.preflight.forecast import Done
from evosearch.preflight.licences import cards_of, check_licences
from evosearch.preflight.sizes import Sizes, sizes_of
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.ledger.store import check_server
from evosearch.search.progress import Watcher
from evosearch.search.records import WarmStart
from evosearch.setup.executors import cluster_of, worker_count
from evosearch.setup.loading import read_search
from evosearch.setup.prepare import Prepared, prepare_with
from evosearch.setup.resume_check import refuse_other_search
from evosearch.setup.trackers import JSON_LINES, jsonl_file
from evosearch.setup.warm_start import found_before
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.lookup import recorded_names
from evosearch.spec.run_dir import LEDGER_URL_FILE, SQLITE
from evosearch.spec.spec import SearchSpec
from evosearch.tracking.access import check_file, look_at, write_to

NO_ACCOUNT = "not authenticated"  # MLflow's words where an account is missing, or its password is wrong


@dataclass
class Ready:
    """What a look at one search has brought.

    Attributes:
        prepared: None where there are problems.
        first: nothing of the spec has been started before.
        done: what is on record of this search; None: it has not begun.
        memory, cost, licences: as `check --json` has them.
    """

    prepared: Prepared | None = None
    warm: WarmStart | None = None
    first: bool = True
    done: Done | None = None
    memory: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None
    licences: dict[str, str | None] | None = None


def look(
    spec: SearchSpec,
    diagnostics: Diagnostics,
    watcher: Watcher,
    allow_pickle: bool = False,
    harness: Callable[[], Harness] | None = None,
) -> Ready:
    """Look for everything that could stop one search.

    What a disk, or the tracking store, cannot take stops a search that is to start. One that has started goes on
    without its tracking store, and has most of its records already: there it is a note.

    Args:
        harness: of the spec's suite; None: it cannot be loaded, and why is known.
    """
    ready = Ready()
    ledger = diagnostics.attempt(lambda: check_ledger(spec)) is not None
    ready.first = _first(spec) if ledger else True
    workers = diagnostics.attempt(lambda: worker_count(spec.config.workers))
    if ready.first and (spec.stage is None or spec.stage.index == 0):
        diagnostics.attempt(lambda: _check_store(spec, diagnostics))
    sizes = _sizes(spec, watcher)
    fits = sizes is None or _fits(resources.to_fetch(spec, sizes), diagnostics, firm=True)
    prepared = prepare_with(diagnostics, spec, watcher, allow_pickle, harness, opened=fits)
    if fits:
        _look_at_cards(spec, diagnostics, ready)
    if prepared is None:
        return ready
    if ledger:
        ready.warm = diagnostics.attempt(lambda: _warm_start(prepared, watcher))
        ready.done = diagnostics.attempt(lambda: _done(prepared))
    sizes = sizes or sizes_of(spec, watcher)
    gate = spec.stage is None or spec.stage.last
    ready.cost = cost(spec, sizes, prepared.tokens, prepared.baselines, gate)
    _fits(_written(prepared, sizes), diagnostics, firm=ready.first)
    ready.memory = resources.memory_of(prepared.models, prepared.largest, another=_another(prepared))
    if workers is not None and not cluster_of(spec.config.workers):
        count, gpus = workers
        device = resources.device_of(spec, gpus or 0.0, ready.cost["device_gib"])
        ready.memory |= {"workers": count or 1} | ({"device": device} if device else {})
        problems, warnings = resources.judge_memory(spec, ready.memory, count or 1)
        for problem in problems:
            diagnostics.add(problem)
        for text in warnings:
            diagnostics.warn(text)
    ready.prepared = prepared
    return ready


def prove_store(spec: SearchSpec) -> None:
    """Write to the tracking store of a search that starts what its mirror writes first.

    A file of our own that is to be made is left to the mirror: that it can be was looked at.

    Raises:
        TrackingError: it cannot be reached, or refuses.
    """
    run_dir, name = spec.run_dir, spec.config.promotion.register_as
    if not run_dir.tracking.startswith((JSON_LINES, SQLITE)):
        with _told_of(spec):
            write_to(run_dir.tracking, run_dir.experiment, run_dir.name, name)


def check_ledger(spec: SearchSpec) -> bool:
    """The ledger can be written, or does not exist yet in a place that can; nothing is created.

    Raises:
        LedgerError: neither.
    """
    run_dir, where = spec.run_dir, f"{spec.file}: ledger"
    url = run_dir.ledger
    if spec.run_dir.external_ledger is not None:
        check_file(run_dir.folder / LEDGER_URL_FILE, "EVOSEARCH_RUNS", LedgerError)
    if not url.startswith(SQLITE):
        check_server(url, where)
        return True
    database = Path(url.removeprefix(SQLITE))
    if not database.name:
        raise LedgerError(where, f"got '{url}'", "sqlite:///FILE, or the URL of a PostgreSQL database")
    check_file(database, where, LedgerError)
    if os.path.exists(database):
        with Ledger.open(url, where, read_only=True):
            pass
    return True


def _first(spec: SearchSpec) -> bool:
    """Whether nothing of the spec is on record yet, of no stage: what only a start may be refused for is asked then."""
    begun = recorded_names(spec.run_dir.ledger)
    if spec.stage is None:
        return spec.name not in begun
    return not any(name.startswith(f"{spec.stage.pipeline}.") for name in begun)


@contextmanager
def _told_of(spec: SearchSpec) -> Iterator[None]:
    """Errors of a tracking store with the spec's key, where they name only the store."""
    try:
        yield
    except TrackingError as error:
        what = error.what if error.where.startswith("tracking.") else f"{error.where}: {error.what}"
        key = error.where if error.where.startswith("tracking.") else "tracking.uri"
        next_step = error.next if key == error.where else "Check the URI, and that the server is up"
        if NO_ACCOUNT in what:
            next_step = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        raise TrackingError(spec.at(key), what, error.allowed, next_step) from error


def _check_store(spec: SearchSpec, diagnostics: Diagnostics) -> None:
    run_dir, name = spec.run_dir, spec.config.promotion.register_as
    with _told_of(spec):
        if run_dir.tracking.startswith(JSON_LINES):
            check_file(jsonl_file(run_dir), "tracking.uri")
        elif text := look_at(run_dir.tracking, run_dir.experiment, name):
            diagnostics.note(text)


def _sizes(spec: SearchSpec, watcher: Watcher) -> Sizes | None:
    """By configs alone; None where they cannot be had or used, which who opens the models says better."""
    with suppress(InputError):
        return sizes_of(spec, watcher)
    return None


def _fits(needs: list[resources.Need], diagnostics: Diagnostics, firm: bool) -> bool:
    problems = resources.lacking(needs)
    for problem in problems:
        if firm:
            diagnostics.add(problem)
        else:
            diagnostics.warn(str(problem))
    return not problems


def _look_at_cards(spec: SearchSpec, diagnostics: Diagnostics, ready: Ready) -> None:
    with suppress(InputError):  # a model that cannot be had, which is said already
        cards = cards_of(spec)
        for text in cards.notes():
            diagnostics.note(text)
        check_licences(spec, cards, diagnostics)
        ready.licences = cards.licences


def _written(prepared: Prepared, sizes: Sizes) -> list[resources.Need]:
    """What a search writes; of one that only the clock ends, what it writes at its end."""
    spec, batches = prepared.spec, prepared.batches
    part = len(prepared.minibatches.batches[0] if prepared.minibatches else batches["search"])
    counts = counts_of(spec, prepared.baselines, part)
    if counts is None:
        return resources.to_write(spec, 0, 0, sizes, prepared.example)
    items = counts.candidates * part + sum(getattr(counts, split) * len(batches[split]) for split in SPLITS)
    return resources.to_write(spec, counts.candidates + counts.search, items, sizes, prepared.example)


def _warm_start(prepared: Prepared, watcher: Watcher) -> WarmStart | None:
    """What it starts from is there, or is an earlier stage that is yet to run."""
    spec = prepared.spec
    named = spec.config.optimizer.warm_start
    own = spec.stage is not None and str(named).startswith(f"{spec.stage.pipeline}.")
    if own and named not in recorded_names(spec.run_dir.ledger):
        return None
    return found_before(prepared, watcher)


def _done(prepared: Prepared) -> Done | None:
    """What the ledger has of this search.

    Raises:
        LedgerError: it has another one of this name, or one that began otherwise.
    """
    spec, run_dir = prepared.spec, prepared.spec.run_dir
    if spec.name not in recorded_names(run_dir.ledger):
        return None
    with Ledger.open(run_dir.ledger, f"{spec.file}: ledger", read_only=True) as ledger:
        if spec.stage is not None and spec.stage.winners:  # for which others may stand in here
            return Done.of(read_search(ledger, run_dir)[1])
        state = refuse_other_search(ledger, prepared)
    return Done.of(state) if state is not None else None


def _another(prepared: Prepared) -> bool:
    """Whether a baseline is scored in a model of its own, beside the candidates'."""
    recipes = [baseline.recipe for baseline in prepared.baselines if baseline.recipe is not None]
    return any(prepared.models.needs_another(recipe) for recipe in recipes)
