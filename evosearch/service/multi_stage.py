"""Multi-stage runs: the searches of a spec's stages, one after the other, each building on earlier winners.

A killed run resumes at the stage that the ledger shows. A stage is not resumed once a later one has started, because
that one builds on its winner.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from evosearch.evaluation.harness.harness import Harness
from evosearch.promotion.honest import items_used
from evosearch.reporting.export import write_winner
from evosearch.reporting.report import RunReport, StageRow, candidate_counts, winner_of
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Watcher
from evosearch.service.stages_lock import running
from evosearch.service.watchers import StageWatcher
from evosearch.setup.loading import read_search, recorded_winner
from evosearch.setup.resume_check import check_same_search
from evosearch.spec.lookup import recorded_names
from evosearch.spec.run_dir import default_run_dir
from evosearch.spec.spec import SearchSpec, Winner
from evosearch.spec.stages import StagedSpec


class Search(Protocol):
    """Function that runs one search; see `run`."""

    def __call__(
        self,
        spec: SearchSpec,
        watcher: Watcher,
        harness: Harness,
        earlier: Sequence[SearchSpec] = (),
        earlier_items: int = 0,
    ) -> RunReport:
        """Run one search whose suite is loaded, after earlier stages that took this many item evaluations."""


def run_stages(spec: StagedSpec, search: Search, watcher: Watcher) -> RunReport:
    """Run or resume all stages.

    Args:
        spec: The multi-stage spec.
        search: Runs one stage.
        watcher: Shows progress and notes.

    Returns:
        The last stage's report, with a row for every stage.

    Raises:
        InputError, SearchError: See `run`.
    """
    with running(default_run_dir(spec.name).folder, str(spec.file)):
        return _run(spec, search, watcher)


def _run(spec: StagedSpec, search: Search, watcher: Watcher) -> RunReport:
    harness = Harness(spec.suite)
    winners: dict[str, Winner] = {}
    rows: list[StageRow] = []
    earlier: list[SearchSpec] = []
    for index, config in enumerate(spec.config.stages[:-1]):
        stage = spec.stage(index, winners)
        row = _settled(stage, spec, watcher)
        rows.append(row or _row(config.name, search(stage, StageWatcher(watcher, stage), harness)))
        winners[config.name] = recorded_winner(stage)
        earlier.append(stage)
    stage = spec.stage(spec.count - 1, winners)
    report = search(stage, StageWatcher(watcher, stage), harness, earlier, sum(map(_items, earlier)))
    return replace(report, stages=(*rows, _row(spec.config.stages[-1].name, report)))


def _items(stage: SearchSpec) -> int:
    """Item evaluations of a stage's candidates."""
    with Ledger.open(stage.run_dir.ledger, f"{stage.file}: ledger", read_only=True) as ledger:
        return items_used(read_search(ledger, stage.run_dir)[1])


def _row(name: str, report: RunReport) -> StageRow:
    return StageRow(name, report.search_id, report.stopped, report.candidates, report.winner, report.exported)


def _settled(stage: SearchSpec, spec: StagedSpec, watcher: Watcher) -> StageRow | None:
    """The row of a stage whose successor has started; None if it may still be resumed.

    Raises:
        LedgerError: The spec's stage is not the recorded one.
    """
    assert stage.stage is not None
    run_dir = stage.run_dir
    recorded = recorded_names(run_dir.ledger)
    later = [spec.search_name(index) for index in range(stage.stage.index + 1, spec.count)]
    started = [name for name in later if name in recorded]
    if stage.name not in recorded or not started:
        return None
    with Ledger.open(run_dir.ledger, f"{stage.file}: ledger", read_only=True) as ledger:
        search_id, state = read_search(ledger, run_dir)
        check_same_search(state.spec, stage, str(ledger.url))
        write_winner(ledger, search_id, state, run_dir.winner_file)
        budget = ledger.events(search_id, types=("started",))[-1].payload["budget"]
    if budget != stage.config.budget.model_dump(mode="json", exclude_none=True):
        text = f"its budget changed, but the stage is not resumed: '{started[0]}' builds on its winner"
        watcher.note(f"{stage.at('budget')}: {text}")
    counts, exported = candidate_counts(state, len(state.finished)), {"recipe": str(run_dir.winner_file)}
    return StageRow(stage.stage.name, search_id, state.stopped, counts, winner_of(state), exported)
