"""The result of a run, as printed by `evosearch run` and `evosearch run --json`."""

from collections.abc import Mapping
from dataclasses import dataclass

from evosearch.evaluation.statistics.rank_correlation import RankCorrelation
from evosearch.promotion.disclosure import disclosures
from evosearch.promotion.finalists import kind_of
from evosearch.promotion.gate import GateDecision
from evosearch.reporting.agreement import agreement_texts
from evosearch.reporting.answers_read import TaskAnswers, statements
from evosearch.reporting.columns import Column, number
from evosearch.reporting.generalization import FINALISTS_TITLE, FinalistRow, finalist_columns
from evosearch.reporting.leaderboard import leaderboard_of, shown_rows
from evosearch.reporting.leaderboard_row import LEADERBOARD_TITLE, LeaderboardRow, leaderboard_columns
from evosearch.reporting.notebook import html_list, html_paragraph, html_table
from evosearch.reporting.pareto_table import PARETO_TITLE, ParetoRow, pareto_columns, pareto_rows
from evosearch.reporting.test_table import TEST_TITLE, TestRow, test_columns, test_rows
from evosearch.search.recorder import Recorder
from evosearch.search.records import is_candidate
from evosearch.search.state import SearchState
from evosearch.setup.prepare import Prepared
from evosearch.spec.run_dir import RunDir
from evosearch.tracking.mirror import UP_TO_DATE

TOP = 12  # rows of the leaderboard that are shown
STAGES_TITLE = "Stages (winners by the validation split)"


@dataclass(frozen=True)
class CandidateCounts:
    """Numbers of candidates of a search."""

    proposed: int
    scored: int
    failed: int  # without a score on the search split
    resumed: int  # finished before this run


@dataclass(frozen=True)
class BestCandidate:
    """The best candidate on the search split, by score, or by fitness where there is no score."""

    candidate: str
    recipe_id: str
    score: float | None
    fitness: float | None


@dataclass(frozen=True)
class BaselineScore:
    """A baseline's score on the search split."""

    score: float | None


@dataclass(frozen=True)
class WinnerRow:
    """The result of a stage, or the promoted model."""

    candidate: str
    title: str  # such as `#17` or `scale 0.6`
    recipe_id: str
    score: float | None  # on validation
    kind: str


@dataclass(frozen=True)
class StageRow:
    """One stage of a multi-stage run."""

    name: str
    search_id: str
    stopped: str | None
    candidates: CandidateCounts
    winner: WinnerRow | None
    exported: Mapping[str, str]  # format → path


def stage_columns() -> list[Column[StageRow]]:
    """Return the columns of the stages of a multi-stage run."""
    return [
        Column("stage", lambda row: row.name, left=True),
        Column("scored", lambda row: f"{row.candidates.scored}/{row.candidates.proposed}"),
        Column("stopped by", lambda row: row.stopped or "-", left=True),
        Column("winner", lambda row: row.winner.title if row.winner else "-", left=True),
        Column("valid.", lambda row: number(row.winner.score if row.winner else None, 1)),
    ]


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """The result of a run; of a multi-stage run, the last stage's, with a row for every stage.

    Attributes:
        name: Name of the search.
        search_id: Id of the search.
        ledger: Database URL of the ledger.
        candidates: Numbers of proposed, scored, failed and resumed candidates.
        seconds: Duration of this run.
        stopped: Why the search ended.
        best: The best candidate by score on the search split.
        baselines: Baseline → score on the search split.
        finalists: Finalists with their generalization gaps.
        unchosen: Base and parents, for comparison with the finalists.
        pareto: Pareto set of a search with several objectives.
        leaderboard: Candidates and baselines, in order of rank.
        gate: The gate's decision; None for a stage that later stages build on.
        winner: The promoted model, or the winner of a stage.
        test: The winner and the models that it was compared with, on the test split.
        test_openings: Openings of this search's test set by all searches, up to now.
        contamination_acknowledged: Whether the suite acknowledges contamination.
        rank_correlation: Of fitness and score, over finalists and baselines; None if none was scored on validation.
        answers: Right answers that the search read, by task.
        exported: Format → path of the exported files.
        tracking_uri: URI of the tracking store.
        tracking: State of the mirror: `up to date`, or how far it is behind.
        mlflow: Address of the leaderboard in MLflow; of a local store, once `evosearch ui` serves it.
        stages: The stages of a multi-stage run.
    """

    name: str
    search_id: str
    ledger: str
    candidates: CandidateCounts
    seconds: float
    stopped: str
    best: BestCandidate | None
    baselines: Mapping[str, BaselineScore]
    finalists: tuple[FinalistRow, ...]
    unchosen: tuple[FinalistRow, ...]
    pareto: tuple[ParetoRow, ...]
    leaderboard: tuple[LeaderboardRow, ...]
    gate: GateDecision | None
    winner: WinnerRow | None
    test: tuple[TestRow, ...]
    test_openings: int
    contamination_acknowledged: bool
    rank_correlation: RankCorrelation | None
    answers: tuple[TaskAnswers, ...]
    exported: Mapping[str, str]
    tracking_uri: str
    tracking: str = UP_TO_DATE
    mlflow: str | None = None
    stages: tuple[StageRow, ...] = ()

    @property
    def promoted(self) -> bool:
        """Whether the gate promoted a model."""
        return self.gate is not None and self.gate.promoted is not None

    def _repr_html_(self) -> str:
        counts = self.candidates
        parts = [html_table(STAGES_TITLE, stage_columns(), self.stages)] if self.stages else []
        rows = shown_rows(self.leaderboard, TOP)
        parts.append(html_table(LEADERBOARD_TITLE, leaderboard_columns(self.leaderboard), rows))
        if self.pareto:
            parts.append(html_table(PARETO_TITLE, pareto_columns(self.pareto), self.pareto))
        if self.finalists:
            parts.append(
                html_table(FINALISTS_TITLE, finalist_columns(self.finalists), (*self.finalists, *self.unchosen))
            )
        if self.test:
            parts.append(html_table(TEST_TITLE, test_columns(self.test), self.test))
        if self.gate:
            openings = None if self.gate.unverified else self.test_openings
            texts = disclosures(openings, self.contamination_acknowledged)
            parts.append(html_list([*self.gate.reasons, *texts]))
        parts.append(html_list([*agreement_texts(self.rank_correlation), *statements(self.answers)]))
        parts.append(html_list(f"exported {fmt}: {path}" for fmt, path in self.exported.items()))
        done = f"{self.name}: {counts.scored} candidates scored in {self.seconds:.0f} s, {counts.failed} failed"
        return "".join(parts) + html_paragraph(f"{done}; stopped by: {self.stopped}")


def report(
    prepared: Prepared,
    run_dir: RunDir,
    recorder: Recorder,
    stopped: str,
    resumed: int,
    exported: Mapping[str, str],
    tracking: str,
    mlflow: str | None,
    seconds: float,
) -> RunReport:
    """Summarize a finished run from its ledger.

    Args:
        prepared: The search as it was run.
        run_dir: Its run directory.
        recorder: Its recorder.
        stopped: Why the search ended.
        resumed: Candidates that were finished before this run.
        exported: Format → path of the exported files.
        tracking: State of the tracking store.
        mlflow: Address of the leaderboard in MLflow.
        seconds: Duration of this run.
    """
    state = recorder.state
    board = leaderboard_of(recorder.ledger, recorder.search_id, state)
    best = next((row for row in board.rows if row.kind == "candidate" and row.fitness is not None), None)
    return RunReport(
        name=prepared.spec.name,
        search_id=prepared.search_id,
        ledger=run_dir.ledger,
        candidates=candidate_counts(state, resumed),
        seconds=seconds,
        stopped=stopped,
        best=BestCandidate(best.candidate, best.recipe_id, best.score, best.fitness) if best else None,
        baselines={row.candidate: BaselineScore(row.score) for row in board.rows if row.kind != "candidate"},
        finalists=board.finalists,
        unchosen=board.unchosen,
        pareto=pareto_rows(board.rows),
        leaderboard=board.rows,
        gate=GateDecision.from_dict(state.gated.decision) if state.gated else None,
        winner=winner_of(state),
        test=test_rows(recorder, prepared.suite, prepared.batches["test"]),
        test_openings=board.test_openings,
        contamination_acknowledged=board.contamination_acknowledged,
        rank_correlation=board.rank_correlation,
        answers=board.answers,
        exported=exported,
        tracking_uri=run_dir.tracking,
        tracking=tracking,
        mlflow=mlflow,
    )


def winner_of(state: SearchState) -> WinnerRow | None:
    """Return a stage's winner or the promoted model, or None if there is neither."""
    if state.winner is not None:
        one = state.winner
        return WinnerRow(one.candidate, state.title(one.candidate), one.recipe_id, one.score, kind_of(one.candidate))
    if state.gated is None or state.gated.promoted is None:
        return None
    name = state.gated.promoted
    return WinnerRow(name, state.title(name), state.recipe_ids[name], state.score(name, "validation"), kind_of(name))


def candidate_counts(state: SearchState, resumed: int) -> CandidateCounts:
    """Count the candidates of a search.

    Args:
        state: The folded search.
        resumed: Candidates that were finished before this run.
    """
    failed = len(_failed(state))
    return CandidateCounts(state.proposed, len(state.finished) - failed, failed, resumed)


def _failed(state: SearchState) -> set[str]:
    """Return the candidates that failed without a score on the search split or on a minibatch of it."""
    scored = {name for name, split in state.cards if split == "search"} | {name for name, _ in state.samples}
    return {
        failure.candidate
        for failure in state.failed
        if is_candidate(failure.candidate)
        and failure.split == "search"
        and failure.candidate not in scored
        and not state.is_answer(failure.candidate)
    }
