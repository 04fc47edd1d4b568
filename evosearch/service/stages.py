"""The searches of a spec of stages, one after the other: each builds on what earlier ones found.

Where the run was killed is read from the ledger, so it goes on at the right stage. A stage whose successor has begun is
not opened again: what it found is what the successor is made of.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from evosearch.evaluation.harness.harness import Harness
from evosearch.reporting.export import write_winner
from evosearch.reporting.report import RunReport, candidates_of, winner_of
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Progress, Watcher
from evosearch.service.stages_lock import running
from evosearch.setup.loading import read_search
from evosearch.spec.lookup import recorded_names
from evosearch.spec.run_dir import default_run_dir
from evosearch.setup.resume_check import check_same_search
from evosearch.spec.spec import SearchSpec, Winner
from evosearch.spec.stages import StagedSpec


class Search(Protocol):
    """Runs one search; see `run`."""

    def __call__(self, spec: SearchSpec, watcher: Watcher, harness: Harness) -> RunReport: ...


def run_stages(spec: StagedSpec, search: Search, watcher: Watcher) -> RunReport:
    """Run or continue all stages.

    Returns:
        The last stage's report, with a row for every stage.

    Raises:
        InputError, SearchError: see `run`.
    """
    with running(default_run_dir(spec.name).folder, str(spec.file)):
        return _run(spec, search, watcher)


def _run(spec: StagedSpec, search: Search, watcher: Watcher) -> RunReport:
    harness = Harness(spec.suite)
    winners: dict[str, Winner] = {}
    rows: list[dict[str, Any]] = []
    for index, config in enumerate(spec.config.stages[:-1]):
        stage = spec.stage(index, _as_begun(spec, index, winners))
        row = _settled(stage, spec, watcher)
        rows.append(row or _row(config.name, search(stage, _Within(watcher, stage), harness)))
        winners[config.name] = _winner(stage)
    stage = spec.stage(spec.count - 1, _as_begun(spec, spec.count - 1, winners))
    report = search(stage, _Within(watcher, stage), harness)
    return replace(report, stages=[*rows, _row(spec.config.stages[-1].name, report)])


def _winner(stage: SearchSpec) -> Winner:
    """What a stage found, from its ledger."""
    run_dir = stage.run_dir
    with Ledger.open(run_dir.ledger, f"{stage.file}: ledger", read_only=True) as ledger:
        _, state = read_search(ledger, run_dir)
    assert state.winner is not None
    return Winner(state.winner.recipe, state.winner.recipe_id, state.recipes)


def _as_begun(spec: StagedSpec, index: int, winners: Mapping[str, Winner]) -> Mapping[str, Winner]:
    """The winners by the names that a stage began with: an earlier version called them by their files."""
    run_dir = spec.run_dir(index)
    if run_dir.name not in recorded_names(run_dir.ledger):
        return winners
    with Ledger.open(run_dir.ledger, f"{spec.file}: ledger", read_only=True) as ledger:
        began = read_search(ledger, run_dir)[1].inputs
    files = {config.name: spec.run_dir(i).winner for i, config in enumerate(spec.config.stages)}
    named = {name for name in winners if any(f"{known}+".startswith(f"{files[name]}+") for known in began)}
    return {name: replace(winner, place=files[name]) if name in named else winner for name, winner in winners.items()}


def _row(name: str, report: RunReport) -> dict[str, Any]:
    """One stage as `evosearch run --json` lists it."""
    return {
        "name": name,
        "search_id": report.search_id,
        "stopped": report.stopped,
        "candidates": report.candidates,
        "winner": report.winner,
        "exported": report.exported,
    }


def _settled(stage: SearchSpec, spec: StagedSpec, watcher: Watcher) -> dict[str, Any] | None:
    """The row of a stage that a later one has begun to build on; None where it is still open.

    Raises:
        LedgerError: the spec's stage is not the one that is recorded.
    """
    assert stage.stage is not None
    run_dir = stage.run_dir
    known = recorded_names(run_dir.ledger)
    later = [spec.search_name(index) for index in range(stage.stage.index + 1, spec.count)]
    begun = [name for name in later if name in known]
    if stage.name not in known or not begun:
        return None
    with Ledger.open(run_dir.ledger, f"{stage.file}: ledger", read_only=True) as ledger:
        search_id, state = read_search(ledger, run_dir)
        check_same_search(state.spec, stage, str(ledger.url))
        write_winner(ledger, search_id, state, run_dir.winner_file)
        budget = ledger.events(search_id, types=("started",))[-1].payload["budget"]
    if budget != stage.config.budget.model_dump(mode="json", exclude_none=True):
        text = f"its budget changed, and it is not opened again: '{begun[0]}' builds on what it found"
        watcher.note(f"{stage.at('budget')}: {text}")
    return {
        "name": stage.stage.name,
        "search_id": search_id,
        "stopped": state.stopped,
        "candidates": candidates_of(state, len(state.finished)),
        "winner": winner_of(state),
        "exported": {"recipe": str(run_dir.winner_file)},
    }


class _Within:
    """A watcher who is told which stage it is."""

    def __init__(self, inner: Watcher, stage: SearchSpec) -> None:
        assert stage.stage is not None
        self._inner, self._name = inner, stage.stage.name

    def update(self, progress: Progress) -> None:
        self._inner.update(replace(progress, stage=f"{self._name}: {progress.stage}"))

    def note(self, text: str) -> None:
        self._inner.note(text)

    def preparing(self, what: str, fraction: float) -> None:
        self._inner.preparing(what, fraction)

    def close(self) -> None:
        self._inner.close()
