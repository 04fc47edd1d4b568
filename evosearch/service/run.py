"""`evosearch run`: take a search from its spec to its promoted, exported winner.

Problems with the input are found before anything is written. Then the ledger is opened and locked; from there on every
step is recorded and can be resumed.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from evosearch.errors import SpecError
from evosearch.evaluation.harness.harness import Harness
from evosearch.execution.reopening import ReopeningExecutor
from evosearch.preflight.check import check_stages
from evosearch.preflight.line_numbers import number_lines
from evosearch.preflight.power import power_warnings
from evosearch.preflight.preflight import preflight
from evosearch.preflight.stores import prove_tracking_store
from evosearch.promotion.honest import Honest
from evosearch.reporting.openings import openings
from evosearch.reporting.report import RunReport, report
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Watcher
from evosearch.search.protocols import Executor
from evosearch.search.recorder import Recorder
from evosearch.search.records import WarmStart
from evosearch.service import phases
from evosearch.service.eta import Eta
from evosearch.service.multi_stage import run_stages
from evosearch.service.overrun import overrun, used_up
from evosearch.service.placebo_run import PlaceboRun
from evosearch.service.register import current_champion, register
from evosearch.service.report_page import log_page
from evosearch.service.score_tables import write_score_tables
from evosearch.service.shutdown import recorded_end
from evosearch.service.teaching import teaching
from evosearch.service.watchers import OnlyPreparing
from evosearch.setup.executors import make_executor
from evosearch.setup.prepare import Prepared
from evosearch.setup.resume_check import refuse_other_search
from evosearch.setup.trackers import (
    CATCH_UP_S,
    PATIENCE_S,
    invitation,
    leaderboard_address,
    mirroring,
    registry_of,
    shown,
)
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.lookup import recorded_names
from evosearch.spec.recovery import Recovered, read
from evosearch.spec.run_dir import record_ledger
from evosearch.spec.spec import SearchSpec
from evosearch.spec.stages import StagedSpec
from evosearch.tracking.mirror import UP_TO_DATE, Mirror


@dataclass(frozen=True)
class Options:
    """Options of a run; see `run`."""

    continue_from_best: bool = False
    allow_pickle: bool = False
    unverified: bool = False
    allow_unrelated: bool = False


def run(
    path: Path,
    watcher: Watcher,
    continue_from_best: bool = False,
    allow_pickle: bool = False,
    unverified: bool = False,
    allow_unrelated: bool = False,
) -> RunReport:
    """Run or resume the search, or the stages, of a spec.

    Args:
        path: The spec file.
        watcher: Shows progress and notes.
        continue_from_best: If the recorded search cannot be replayed exactly, continue from its best candidate.
        allow_pickle: Read pickled weights of models without safetensors.
        unverified: Of a suite without right answers: promote the best model by the teachers' fitness on validation.
        allow_unrelated: Merge models that share no base, which are refused otherwise.

    Raises:
        InputError: The input is wrong; nothing was scored.
        SearchError: The search cannot continue; the ledger has the reason.
    """
    options = Options(continue_from_best, allow_pickle, unverified, allow_unrelated)
    diagnostics = Diagnostics()
    found = read(path, diagnostics)
    if diagnostics.problems or found.spec is None:
        _raise_all(path, found, diagnostics, watcher, options)
    spec = found.spec
    assert spec is not None
    if unverified and spec.suite.scoring:
        what = f"given, and {spec.suite.source} has right answers: the gate decides"
        raise SpecError("--unverified", what, "Only of a suite of prompts alone", "Leave it out")
    if isinstance(spec, StagedSpec):
        _check_ahead(spec, watcher, options)
        return run_stages(spec, partial(_run_one, options), watcher)
    return _run_one(options, spec, watcher)


def _run_one(
    options: Options,
    spec: SearchSpec,
    watcher: Watcher,
    harness: Harness | None = None,
    earlier: Sequence[SearchSpec] = (),
    earlier_items: int = 0,
) -> RunReport:
    """Run one search to the gate, or to the winner of a stage that others build on.

    Args:
        options: Options of the run.
        spec: The search.
        watcher: Shows progress and notes.
        harness: The suite, if it is loaded already.
        earlier: The earlier stages.
        earlier_items: Item evaluations of their candidates.
    """
    prepared, warm = _ready(options, spec, watcher, harness)
    for text in power_warnings(prepared.suite, prepared.batches["test"]):
        watcher.note(text)
    wanted, seed = spec.config.baselines, spec.config.optimizer.seed
    placebo = None
    if wanted.placebo and spec.ends_at_gate:
        search = partial(_run_prepared, options)
        placebo = PlaceboRun((*earlier, spec), search, watcher, prepared.harness, options.allow_pickle)
    return _run_prepared(options, prepared, watcher, warm, Honest(wanted.trained, seed, earlier_items, placebo))


def _run_prepared(
    options: Options,
    prepared: Prepared,
    watcher: Watcher,
    warm: WarmStart | None = None,
    honest: Honest | None = None,
) -> RunReport:
    """Run or resume a prepared search."""
    began = time.monotonic()
    spec, run_dir = prepared.spec, prepared.spec.run_dir
    with ExitStack() as stack:
        ledger = stack.enter_context(Ledger.open(run_dir.ledger, f"{spec.file}: ledger", notice=watcher.note))
        prepared = prepared.resumed(refuse_other_search(ledger, prepared))
        stack.enter_context(ledger.acquire(prepared.search_id))
        record_ledger(run_dir)
        recorder = Recorder(ledger, prepared.search_id, watcher=watcher)
        already = len(recorder.state.finished)
        watcher.note(f"run folder: {run_dir.folder}; {invitation(run_dir)}")
        if recorder.state.sessions:
            watcher.note(f"continuing: {already} candidate{'' if already == 1 else 's'} recorded")
        else:
            watcher.note(prepared.share_of_baselines)
        for text in used_up(prepared, recorder.state):
            watcher.note(text)
        phases_of = partial(_run_recorded, options, prepared, warm, honest or Honest(), recorder, stack)
        exported, mirror = recorded_end(recorder, phases_of)
        mirror.close(CATCH_UP_S, PATIENCE_S)
        if mirror.state == UP_TO_DATE:  # with a store that is down, it would only wait
            log_page(run_dir, ledger, prepared.search_id, watcher=recorder.watcher)
            write_score_tables(prepared, recorder)
        tracking = UP_TO_DATE if mirror.state == UP_TO_DATE else f"{shown(run_dir)} is {mirror.state}"
        if longer := overrun(prepared, recorder.state):
            watcher.note(longer)
        stopped = recorder.state.stopped
        assert stopped is not None
        board = leaderboard_address(run_dir, mirror.leaderboard) if mirror.leaderboard else None
        seconds = time.monotonic() - began
        return report(prepared, run_dir, recorder, stopped, already, exported, tracking, board, seconds)


def _run_recorded(
    options: Options,
    prepared: Prepared,
    warm: WarmStart | None,
    honest: Honest,
    recorder: Recorder,
    stack: ExitStack,
) -> tuple[str, tuple[dict[str, str], Mirror]]:
    """All recorded phases of a search.

    Returns:
        Why the search stopped; format → path of the exported files, and the mirror, which `stack` closes.
    """
    spec, ledger, watcher = prepared.spec, recorder.ledger, recorder.watcher
    phases.start(recorder, prepared, warm)
    registry = registry_of(spec.run_dir) if spec.ends_at_gate else None
    champion = current_champion(prepared, registry, watcher)  # before the mirror, which creates the store too
    mirror = stack.enter_context(mirroring(spec.run_dir, prepared.search_id, watcher))
    recorder.trackers = (mirror,)
    mirror.notify()
    executor: Executor = ReopeningExecutor(lambda: make_executor(spec.config.workers, prepared, watcher))
    stack.callback(executor.close)
    executor = teaching(prepared, recorder, executor)
    recorder.trackers = (mirror, Eta(prepared, recorder, executor))
    record = stack.enter_context(openings(ledger, shared=spec.config.ledger is not None))
    stopped = phases.search(prepared, recorder, executor, options.continue_from_best)
    if not spec.ends_at_gate:
        return stopped, (phases.choose_winner(prepared, recorder, executor), mirror)
    if prepared.suite.scoring:
        decision = phases.promote(prepared, recorder, executor, champion, record, honest)
    else:
        decision = phases.choose_unverified(prepared, recorder, executor, options.unverified)
    exported = phases.export(prepared, recorder, decision)
    if spec.config.promotion.register_as is not None and decision.promoted is not None:
        mirror.bring_forward(decision.promoted, CATCH_UP_S, PATIENCE_S)  # to be registered, it must have a run
    register(prepared, recorder, registry, decision, exported, watcher)
    return stopped, (exported, mirror)


def _ready(
    options: Options, spec: SearchSpec, watcher: Watcher, harness: Harness | None
) -> tuple[Prepared, WarmStart | None]:
    """Check and prepare a search before anything is written.

    Raises:
        InputError: All problems that were found.
    """
    diagnostics = Diagnostics()
    load = partial(_loaded, harness, spec)
    ready = preflight(spec, diagnostics, watcher, options.allow_pickle, load, options.allow_unrelated)
    if ready.first and not diagnostics.problems:
        diagnostics.attempt(lambda: prove_tracking_store(spec))
    number_lines(diagnostics.problems)
    diagnostics.raise_all(str(spec.file))
    for text in diagnostics.warnings:
        watcher.note(text)
    assert ready.prepared is not None
    return ready.prepared, ready.warm


def _loaded(harness: Harness | None, spec: SearchSpec) -> Harness:
    return harness or Harness(spec.suite)


def _check_ahead(spec: StagedSpec, watcher: Watcher, options: Options) -> None:
    """Check all stages of a multi-stage run that has not started, with placeholders for winners.

    Raises:
        InputError: A problem that would otherwise be found only after the earlier stages.
    """
    recorded = recorded_names(spec.run_dir(0).ledger)
    if any(spec.search_name(index) in recorded for index in range(spec.count)):
        return
    diagnostics = Diagnostics()
    harness = diagnostics.attempt(lambda: Harness(spec.suite))
    quiet = OnlyPreparing(watcher)  # each stage will give its notes
    allowed = options.allow_pickle, options.allow_unrelated
    check_stages(spec, diagnostics, quiet, harness, False, *allowed)
    diagnostics.raise_all(str(spec.file))


def _raise_all(path: Path, found: Recovered, diagnostics: Diagnostics, watcher: Watcher, options: Options) -> None:
    """Check the rest of an invalid spec, and raise all problems.

    Raises:
        InputError: Always.
    """
    suite = found.suite
    harness = diagnostics.attempt(lambda: Harness(suite)) if suite is not None else None
    if isinstance(found.spec, SearchSpec):
        loaded = (lambda: harness) if harness is not None else None
        preflight(found.spec, diagnostics, watcher, options.allow_pickle, loaded, options.allow_unrelated)
    number_lines(diagnostics.problems)
    diagnostics.raise_all(str(path))
