"""A search from its spec to its promoted, exported winner: the rooms, wired.

What can be wrong with the input is found before anything is written; then the ledger is opened and held, and from
there on every step is on record and can be continued.
"""

import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from evosearch.evaluation.harness.harness import Harness
from evosearch.preflight.check import check_stages
from evosearch.preflight.power import hardly_decided
from evosearch.preflight.preflight import look, prove_store
from evosearch.promotion.gate import GateDecision
from evosearch.promotion.promote import Champion, Promotion
from evosearch.promotion.validate import Validation
from evosearch.reporting.export import export_promoted, write_winner
from evosearch.reporting.openings import openings
from evosearch.reporting.report import RunReport, report
from evosearch.reporting.test_table import measure_of
from evosearch.search.budget import Budget
from evosearch.search.controller import Controller
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.optimizers.registry import create
from evosearch.search.progress import Silent, Watcher
from evosearch.search.protocols import Executor
from evosearch.search.recorder import Recorder
from evosearch.search.records import WarmStart
from evosearch.service.eta import Foretelling
from evosearch.service.register import never_met, present_champion, register
from evosearch.service.shutdown import on_record
from evosearch.service.stages import run_stages
from evosearch.setup.executors import make_executor
from evosearch.setup.prepare import Prepared
from evosearch.setup.resume_check import circumstances, refuse_other_search
from evosearch.setup.trackers import CATCH_UP_S, PATIENCE_S, mirroring, registry_of, shown
from evosearch.setup.versions import versions
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.recovery import Recovered, read
from evosearch.spec.lookup import recorded_names
from evosearch.spec.run_dir import RunDir, record_ledger
from evosearch.spec.spec import SearchSpec
from evosearch.spec.stages import StagedSpec
from evosearch.tracking.mirror import UP_TO_DATE, Mirror


def run(path: Path, watcher: Watcher, continue_from_best: bool = False, allow_pickle: bool = False) -> RunReport:
    """Run the search, or the stages, that a spec describes, or continue them.

    Args:
        continue_from_best: where the recorded search cannot be replayed exactly, go on from its best candidate.
        allow_pickle: read pickled weights where a model has no others.

    Raises:
        InputError: something the user can mend; nothing was scored.
        SearchError: the search cannot go on; the ledger has the reason.
    """
    diagnostics = Diagnostics()
    found = read(path, diagnostics)
    if diagnostics.problems or found.spec is None:
        _say_all(path, found, diagnostics, watcher, allow_pickle)
    spec = found.spec
    assert spec is not None
    options = Options(continue_from_best, allow_pickle)
    if isinstance(spec, StagedSpec):
        _look_ahead(spec, watcher, allow_pickle)
        return run_stages(spec, partial(_run_one, options), watcher)
    return _run_one(options, spec, watcher)


@dataclass(frozen=True)
class Options:
    """How a run goes about what cannot be continued, or read, as it stands; see `run`."""

    continue_from_best: bool = False
    allow_pickle: bool = False


def _run_one(options: Options, spec: SearchSpec, watcher: Watcher, harness: Harness | None = None) -> RunReport:
    """One search: to the gate or, of a stage that others build on, to its winner.

    Args:
        harness: of the spec's suite, where it is loaded already.
    """
    began = time.monotonic()
    run_dir = spec.run_dir
    prepared, warm = _ready(options, spec, watcher, harness)
    for text in hardly_decided(prepared.suite, prepared.batches["test"]):
        watcher.note(text)
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(run_dir.ledger, f"{spec.file}: ledger", notice=watcher.note))
        refuse_other_search(ledger, prepared)
        prepared = _as_recorded(ledger, prepared)
        stack.enter_context(ledger.acquire(prepared.search_id))
        record_ledger(spec.run_dir)
        recorder = Recorder(ledger, prepared.search_id, watcher=watcher)
        already = len(recorder.state.finished)
        exported, mirror = on_record(recorder, partial(_whole, options, prepared, warm, run_dir, recorder, stack))
        mirror.close(CATCH_UP_S, PATIENCE_S)
        note = None if mirror.state == UP_TO_DATE else f"{shown(run_dir)} is {mirror.state}"
        stopped = recorder.state.stopped
        assert stopped is not None
        return report(prepared, run_dir, recorder, stopped, already, exported, note, time.monotonic() - began)


def _as_recorded(ledger: Ledger, prepared: Prepared) -> Prepared:
    """The same under the id that the ledger has it by: earlier versions' ids told defaults that were written out."""
    known = ledger.search_by_name(prepared.spec.name)
    return prepared if known is None else replace(prepared, search_id=known.search_id)


def _whole(
    options: Options, prepared: Prepared, warm: WarmStart | None, run_dir: RunDir, recorder: Recorder, stack: ExitStack
) -> tuple[str, tuple[dict[str, str], Mirror]]:
    """All that is on record: why the search stopped; what was exported, and the mirror, which `stack` closes."""
    spec, ledger, watcher = prepared.spec, recorder.ledger, recorder.watcher
    last = spec.stage is None or spec.stage.last
    _begin(recorder, prepared, warm)
    registry = registry_of(run_dir) if last else None
    champion = present_champion(prepared, registry, watcher)  # first: two threads must not create one store
    mirror = stack.enter_context(mirroring(run_dir, prepared.search_id, watcher))
    recorder.trackers = (mirror,)
    mirror.notify()
    executor = make_executor(spec.config.workers, prepared, watcher)
    stack.callback(executor.close)
    recorder.trackers = (mirror, Foretelling(prepared, recorder, executor, last))
    record = stack.enter_context(openings(ledger, shared=spec.config.ledger is not None))
    stopped = _search(prepared, recorder, executor, options.continue_from_best)
    if not last:
        return stopped, (_choose_winner(prepared, run_dir, recorder, executor), mirror)
    decision = _promote(prepared, recorder, executor, champion, record)
    exported = _export(prepared, run_dir, recorder, decision)
    mirror.catch_up(CATCH_UP_S, PATIENCE_S)  # the candidate's run must be there before it is registered
    register(prepared, recorder, registry, decision, exported, watcher)
    return stopped, (exported, mirror)


def _ready(
    options: Options, spec: SearchSpec, watcher: Watcher, harness: Harness | None
) -> tuple[Prepared, WarmStart | None]:
    """What the search needs; nothing is written before all of it is found to be there.

    Raises:
        InputError: something is wrong; `Problems` where several things are.
    """
    diagnostics = Diagnostics()
    ready = look(spec, diagnostics, watcher, options.allow_pickle, lambda: harness or Harness(spec.suite))
    if ready.first and not diagnostics.problems:
        diagnostics.attempt(lambda: prove_store(spec))
    diagnostics.raise_all(str(spec.file))
    for text in diagnostics.warnings:
        watcher.note(text)
    assert ready.prepared is not None
    return ready.prepared, ready.warm


def _look_ahead(spec: StagedSpec, watcher: Watcher, allow_pickle: bool) -> None:
    """All stages of a spec that has not begun, each with the start of an earlier one in place of its winner.

    Raises:
        InputError: something is wrong with one, which otherwise would be found when those before it are done.
    """
    begun = recorded_names(spec.run_dir(0).ledger)
    if any(spec.search_name(index) in begun for index in range(spec.count)):
        return
    diagnostics = Diagnostics()
    harness = diagnostics.attempt(lambda: Harness(spec.suite))
    check_stages(spec, diagnostics, _OfPreparing(watcher), harness, trial=False, allow_pickle=allow_pickle)
    diagnostics.raise_all(str(spec.file))


class _OfPreparing(Silent):
    """A watcher who is told what is being made ready, and nothing that will be said again."""

    def __init__(self, inner: Watcher) -> None:
        self._inner = inner

    def preparing(self, what: str, fraction: float) -> None:
        self._inner.preparing(what, fraction)


def _say_all(path: Path, found: Recovered, diagnostics: Diagnostics, watcher: Watcher, allow_pickle: bool) -> None:
    """Of a file that cannot be run as it stands, what else is wrong.

    Raises:
        InputError: always.
    """
    suite = found.suite
    harness = diagnostics.attempt(lambda: Harness(suite)) if suite is not None else None
    if isinstance(found.spec, SearchSpec):
        look(found.spec, diagnostics, watcher, allow_pickle, (lambda: harness) if harness is not None else None)
    diagnostics.raise_all(str(path))


def _begin(recorder: Recorder, prepared: Prepared, warm: WarmStart | None) -> None:
    parts = prepared.minibatches.batches if prepared.minibatches else ()
    for batch in (*prepared.batches.values(), *parts):
        recorder.ledger.put_item_sets(batch)
    payload = {
        "name": prepared.spec.name,
        "spec": prepared.spec.identity(),
        "versions": versions(),
        "budget": prepared.spec.config.budget.model_dump(mode="json", exclude_none=True),
        "resumed": recorder.state.sessions > 0,
    }
    entries = [("started", payload | circumstances(prepared).to_payload())]
    if warm is not None and recorder.state.sessions == 0:
        entries.append(("warm_started", warm.to_payload()))
    recorder.record(entries)


def _search(prepared: Prepared, recorder: Recorder, executor: Executor, continue_from_best: bool) -> str:
    config, warm = prepared.spec.config, recorder.state.warm_start
    known = warm.observations if warm else ()
    objectives = config.objectives or ()
    controller = Controller(
        recorder=recorder,
        executor=executor,
        space=prepared.space,
        batch=prepared.batches["search"],
        baselines=prepared.baselines,
        identify=prepared.models.identify,
        make_optimizer=lambda start: create(
            config.optimizer, prepared.space.dimensions, start, objectives=len(objectives) or 1, known=known
        ),
        minibatches=prepared.minibatches,
        objectives=objectives,
        start=config.optimizer.start,
        warm_start=warm.start if warm else None,
        budget=Budget(**config.budget.model_dump()),
        asynchronous=config.optimizer.asynchronous,
        continue_from_best=continue_from_best,
    )
    return controller.run()


def _promote(
    prepared: Prepared, recorder: Recorder, executor: Executor, champion: Champion | None, openings: Ledger
) -> GateDecision:
    """Decide, unless this search has decided already and asked nothing since."""
    state = recorder.state
    if state.gated is not None and state.gated_at == state.proposed and not never_met(state, champion):
        return GateDecision.from_dict(state.gated.decision)
    return Promotion(
        recorder=recorder,
        executor=executor,
        openings=openings,
        batches=prepared.batches,
        metrics={task.name: task.column for task in (*prepared.suite.scoring, *prepared.suite.guarded)},
        chances={task.name: task.chance for task in prepared.suite.guarded},
        measure=measure_of(prepared.suite, prepared.batches["test"]),
        finalists=prepared.spec.config.promotion.finalists,
        champion=champion,
    ).run()


def _choose_winner(prepared: Prepared, run_dir: RunDir, recorder: Recorder, executor: Executor) -> dict[str, str]:
    """A stage's winner, on record and as a recipe file; chosen anew only where something was asked since."""
    state = recorder.state
    if state.winner is None or state.winner_at != state.proposed:
        finalists = prepared.spec.config.promotion.finalists
        Validation(recorder=recorder, executor=executor, batches=prepared.batches, finalists=finalists).winner()
    write_winner(recorder.ledger, recorder.search_id, state, run_dir.winner_file)
    return {"recipe": str(run_dir.winner_file)}


def _export(prepared: Prepared, run_dir: RunDir, recorder: Recorder, decision: GateDecision) -> dict[str, str]:
    """The promoted winner's files, written anew at every run: they follow from the ledger."""
    name = decision.promoted
    if name is None:
        return {}
    ledger, search_id, state = recorder.ledger, recorder.search_id, recorder.state
    checkpoint = prepared.spec.config.promotion.checkpoint
    return export_promoted(ledger, search_id, state, name, prepared.models, run_dir.export_folder, checkpoint)
