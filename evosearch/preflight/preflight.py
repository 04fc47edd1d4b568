"""Preflight: everything that could stop a search, checked before it starts and reported at once.

Fetched models and merged recipes stay in their caches; nothing else is left behind.

| check | is skipped if |
|---|---|
| ledger, workers, tracking store, keys of the spec | never |
| suite: tasks, documents, splits | it cannot be loaded |
| disk space for downloads; models and how they fit; search space, baselines, prompts | something they need is missing |
| licences | a model cannot be fetched |
| disk space for results, memory, warm start, recorded search | any of these fails |
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from evosearch.errors import InputError
from evosearch.evaluation.harness.harness import Harness
from evosearch.evaluation.statistics.gradient_steps import LEAST_HELD_BACK
from evosearch.evaluation.types import SPLITS
from evosearch.preflight.asks import answers_of, asks_in
from evosearch.preflight.cost import cost
from evosearch.preflight.counts import counts_of
from evosearch.preflight.disk_needs import Need, lacking, to_fetch, to_write
from evosearch.preflight.forecast import Done
from evosearch.preflight.licences import cards_of, check_licences
from evosearch.preflight.memory_needs import device_of, judge_memory, memory_of
from evosearch.preflight.sizes import Sizes, sizes_of
from evosearch.preflight.statistics_needs import methods_of, statistics_needs
from evosearch.preflight.stores import check_ledger, check_tracking_store
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Watcher
from evosearch.search.records import WarmStart
from evosearch.search.state import SearchState
from evosearch.setup.executors import cluster_of, worker_count
from evosearch.setup.loading import read_search
from evosearch.setup.prepare import Prepared, prepare_with
from evosearch.setup.resume_check import refuse_other_search
from evosearch.setup.warm_start import found_before
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.lookup import recorded_names
from evosearch.spec.spec import SearchSpec

HELD_BACK_OPTIONS = ("hold_back", "check_every", "patience")  # of `gradient`, for the held-back part


@dataclass
class Ready:
    """Results of a preflight.

    Attributes:
        prepared: The prepared search; None if there are problems.
        warm: The warm start, for a search that has not started.
        first: Whether no search of the spec has started yet.
        done: Recorded work; None if the search has not started.
        memory: As `check --json` prints it.
        cost: As `check --json` prints it.
        licences: As `check --json` prints it.
    """

    prepared: Prepared | None = None
    warm: WarmStart | None = None
    first: bool = True
    done: Done | None = None
    memory: dict[str, Any] | None = None
    cost: dict[str, Any] | None = None
    licences: dict[str, str | None] | None = None


def preflight(
    spec: SearchSpec,
    diagnostics: Diagnostics,
    watcher: Watcher,
    allow_pickle: bool = False,
    harness: Callable[[], Harness] | None = None,
    allow_unrelated: bool = False,
) -> Ready:
    """Check everything that could stop a search.

    A full disk or a failing tracking store is a problem for a search that has not started. For one that has, it is a
    warning: the search continues without its tracking store, and has written most of its records.

    Args:
        spec: The spec.
        diagnostics: Where problems, warnings and notes are recorded.
        watcher: Shows what is being prepared.
        allow_pickle: Read pickled weights of models without safetensors.
        harness: Loads the spec's suite; None if it cannot be loaded, which is recorded already.
        allow_unrelated: Merge models that share no base, which are refused otherwise.
    """
    ready = Ready()
    ledger = diagnostics.passes(lambda: check_ledger(spec, diagnostics))
    ready.first = _is_first(spec) if ledger else True
    workers = diagnostics.attempt(lambda: worker_count(spec.config.workers))
    if ready.first and (spec.stage is None or spec.stage.index == 0):
        diagnostics.attempt(lambda: check_tracking_store(spec, diagnostics))
    sizes = _sizes(spec, watcher)
    fits = sizes is None or _fits(to_fetch(spec, sizes), diagnostics, required=True)
    prepared = prepare_with(diagnostics, spec, watcher, allow_pickle, harness, fits, allow_unrelated)
    if fits:
        _check_cards(spec, diagnostics, ready)
    if prepared is None:
        return ready
    if ledger:
        started = prepared
        ready.warm = diagnostics.attempt(lambda: _warm_start(started, watcher))
        state = diagnostics.attempt(lambda: _recorded(started))
        if state is not None:
            ready.done = Done.of(state)
            prepared = started.resumed(state)
    sizes = sizes or sizes_of(spec, watcher)
    _note_gradients(prepared, workers, diagnostics)
    asks = asks_in(prepared)
    answers = answers_of(prepared.optimizer, asks)
    ready.cost = cost(spec, sizes, prepared.tokens, prepared.baselines, asks, answers)
    statistics = statistics_needs(prepared.models, methods_of(spec.template))
    if statistics.note:
        diagnostics.note(f"statistics: {statistics.note}")
    _fits([*_written(prepared, sizes), *statistics.needs], diagnostics, required=ready.first)
    ready.memory = memory_of(prepared.models, prepared.largest, another=_needs_another(prepared))
    if workers is not None and not cluster_of(spec.config.workers):
        _check_memory(spec, ready.memory, ready.cost["device_gib"], workers, diagnostics)
    ready.prepared = prepared
    return ready


def _is_first(spec: SearchSpec) -> bool:
    """Whether no search of the spec, or of its stages, is on record yet."""
    recorded = recorded_names(spec.run_dir.ledger)
    if spec.stage is None:
        return spec.name not in recorded
    return not any(name.startswith(f"{spec.stage.pipeline}.") for name in recorded)


def _sizes(spec: SearchSpec, watcher: Watcher) -> Sizes | None:
    """Sizes of the models; None if a config cannot be used, which opening the models reports in more detail."""
    with suppress(InputError):
        return sizes_of(spec, watcher)
    return None


def _fits(needs: list[Need], diagnostics: Diagnostics, required: bool) -> bool:
    problems = lacking(needs)
    for problem in problems:
        if required:
            diagnostics.add(problem)
        else:
            diagnostics.warn(str(problem))
    return not problems


def _check_cards(spec: SearchSpec, diagnostics: Diagnostics, ready: Ready) -> None:
    with suppress(InputError):  # a model cannot be fetched, which is reported already
        cards = cards_of(spec)
        for text in cards.notes():
            diagnostics.note(text)
        check_licences(spec, cards, diagnostics)
        ready.licences = cards.licences


def _note_gradients(
    prepared: Prepared, workers: tuple[int | None, float | None] | None, diagnostics: Diagnostics
) -> None:
    """Note what a search by gradients leaves unused: workers without a shard, guards, options for a held-back part."""
    steps, spec = prepared.steps, prepared.spec
    if steps is None:
        return
    count = workers[0] if workers is not None else None
    if count is not None and count > steps.shards:
        shards = f"{steps.shards} shard{'s' if steps.shards > 1 else ''}"
        diagnostics.note(f"{count} workers share the {shards} of a step: set optimizer.population to {count}")
    if spec.suite.guards:
        diagnostics.warn(f"{spec.at('optimizer.name')}: the suite's guards are not part of the gradient")
    unused = [key for key in HELD_BACK_OPTIONS if (spec.config.optimizer.model_extra or {}).get(key)]
    if unused and steps.held_back is None:
        why = f"because nothing is held back: of each task at least {LEAST_HELD_BACK} documents would be"
        diagnostics.warn(f"{spec.at(f'optimizer.{unused[0]}')}: has no effect, {why}")


def _check_memory(
    spec: SearchSpec,
    memory: dict[str, Any],
    device_gib: dict[str, float],
    workers: tuple[int | None, float | None],
    diagnostics: Diagnostics,
) -> None:
    """Check the memory of this machine, and add its workers and GPUs to `memory`."""
    count, gpus = workers[0] or 1, workers[1] or 0.0
    device = device_of(spec, gpus, device_gib)
    memory |= {"workers": count} | ({"device": device} if device else {})
    problems, warnings = judge_memory(spec, memory, count)
    for problem in problems:
        diagnostics.add(problem)
    for text in warnings:
        diagnostics.warn(text)


def _written(prepared: Prepared, sizes: Sizes) -> list[Need]:
    """Data that a search writes; if only hours limit it, the data that it writes at its end."""
    spec, batches = prepared.spec, prepared.ranked
    per_candidate = len(prepared.minibatches.batches[0] if prepared.minibatches else batches["search"])
    asks = asks_in(prepared)
    counts = counts_of(spec, prepared.baselines, per_candidate, asks, answers_of(prepared.optimizer, asks))
    if counts is None:
        return to_write(spec, 0, 0, sizes, prepared.example)
    candidates = counts.candidates + counts.placebo
    items = candidates * per_candidate + sum(getattr(counts, split) * len(batches[split]) for split in SPLITS)
    return to_write(spec, candidates + counts.search, items, sizes, prepared.example)


def _warm_start(prepared: Prepared, watcher: Watcher) -> WarmStart | None:
    """The warm start; None if it is from an earlier stage that has not run yet."""
    spec = prepared.spec
    named = spec.config.optimizer.warm_start
    own = spec.stage is not None and (spec.warm_stage or str(named).startswith(f"{spec.stage.pipeline}."))
    if spec.stage is not None and spec.warm_stage is not None:
        named = f"{spec.stage.pipeline}.{spec.warm_stage}"
    if own and named not in recorded_names(spec.run_dir.ledger):
        return None
    return found_before(prepared, watcher)


def _recorded(prepared: Prepared) -> SearchState | None:
    """The recorded state of this search; None if it has not started.

    Raises:
        LedgerError: See `refuse_other_search`.
    """
    spec = prepared.spec
    if spec.name not in recorded_names(spec.run_dir.ledger):
        return None
    with Ledger.open(spec.run_dir.ledger, f"{spec.file}: ledger", read_only=True) as ledger:
        if spec.stage is not None and spec.stage.winners:  # they may be placeholders here
            return read_search(ledger, spec.run_dir)[1]
        return refuse_other_search(ledger, prepared)


def _needs_another(prepared: Prepared) -> bool:
    """Whether a baseline is scored in a resident model of its own."""
    recipes = [baseline.recipe for baseline in prepared.baselines if baseline.recipe is not None]
    return any(prepared.models.needs_another(recipe) for recipe in recipes)
