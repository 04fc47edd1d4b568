"""The leaderboard: candidates and baselines by score, read from the ledger alone."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from evosearch.evaluation.statistics.rank_correlation import RankCorrelation
from evosearch.promotion.disclosure import disclosures
from evosearch.promotion.honest import PLACEBO, TRAINED
from evosearch.reporting.agreement import agreement, agreement_texts
from evosearch.reporting.answers_read import TaskAnswers, recorded_answers, statements
from evosearch.reporting.generalization import FinalistRow, finalist_rows, unchosen_rows
from evosearch.reporting.leaderboard_row import (
    LEADERBOARD_TITLE,
    LeaderboardRow,
    folded_numbers,
    leaderboard_columns,
    records_of,
    row_of,
)
from evosearch.reporting.notebook import html_paragraph, html_table
from evosearch.reporting.openings import times_opened
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.pareto import pareto_set
from evosearch.search.state import SearchState
from evosearch.setup.loading import contamination_acknowledged, read_search
from evosearch.spec.run_dir import RunDir

if TYPE_CHECKING:
    import pandas as pd


SHOWN = 50  # rows shown in a notebook


@dataclass(frozen=True)
class Leaderboard:
    """All rows of a search, with the disclosures that accompany its test scores.

    A notebook shows it as a table; `to_frame` returns it as a pandas DataFrame.

    Attributes:
        rows: Candidates and baselines, in order of rank.
        finalists: Finalists with their generalization gaps.
        unchosen: Base and parents, for comparison with the finalists.
        test_openings: Openings of the test set by all searches, up to now.
        contamination_acknowledged: Whether the suite acknowledges contamination.
        rank_correlation: Of fitness and score; None before finalists are scored.
        answers: Right answers that the search read, by task.
    """

    rows: tuple[LeaderboardRow, ...]
    finalists: tuple[FinalistRow, ...]
    unchosen: tuple[FinalistRow, ...]
    test_openings: int
    contamination_acknowledged: bool
    rank_correlation: RankCorrelation | None = None
    answers: tuple[TaskAnswers, ...] = ()

    def to_frame(self) -> "pd.DataFrame":
        """Return one row for each candidate and baseline, in order of rank.

        Columns are the plain fields of `LeaderboardRow`, then `score.SPLIT`, `task.TASK.SPLIT`, `objective.NAME`,
        `violation.TASK` and `genome.DIMENSION`; `genome.HOLE.mean`, `.low` and `.high` for a hole with many numbers.
        Values that a row lacks are missing.
        """
        import pandas as pd

        columns, records = records_of(self.rows)
        return pd.DataFrame(records, columns=columns)

    def _repr_html_(self) -> str:
        texts = disclosures(self.test_openings, self.contamination_acknowledged)
        if len(self.rows) > SHOWN:
            texts.insert(0, f"{len(self.rows) - SHOWN} more rows: see to_frame()")
        texts = [*filter(None, [folded_numbers(self.rows)]), *texts, *agreement_texts(self.rank_correlation)]
        texts += statements(self.answers)
        table = html_table(LEADERBOARD_TITLE, leaderboard_columns(self.rows), shown_rows(self.rows, SHOWN))
        return table + "".join(map(html_paragraph, texts))


def leaderboard(run_dir: RunDir, with_runs: bool = False) -> Leaderboard:
    """Rank candidates and baselines by score on the search split.

    Models that break no guard come first, failures last; models scored on the full split come before those scored only
    on a minibatch.

    Args:
        run_dir: Run directory of the search.
        with_runs: Add MLflow run ids, if the tracking store can be reached.

    Raises:
        LedgerError: There is no such search.
    """
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        search_id, state = read_search(ledger, run_dir)
        found = leaderboard_of(ledger, search_id, state)
    if not with_runs:
        return found
    runs = _run_ids(run_dir, search_id)
    return replace(found, rows=tuple(replace(row, run_id=runs.get(row.candidate)) for row in found.rows))


def leaderboard_of(ledger: Ledger, search_id: str, state: SearchState) -> Leaderboard:
    """Build the leaderboard of a folded search; item scores are read from its ledger."""
    finalists = finalist_rows(ledger, search_id, state)
    unchosen = unchosen_rows(ledger, search_id, state) if finalists else ()
    gaps = {row.candidate: row.gaps for row in (*finalists, *unchosen)}
    opened, acknowledged = times_opened(ledger, state), contamination_acknowledged(state)
    rows = []
    for row in leaderboard_rows(state):
        splits = dict(row.splits)
        if "test" in splits:
            splits["test"] = replace(splits["test"], openings=opened, contamination_acknowledged=acknowledged)
        rows.append(replace(row, gaps=gaps.get(row.candidate, ()), splits=splits))
    answers = recorded_answers(state)
    return Leaderboard(tuple(rows), finalists, unchosen, opened, acknowledged, agreement(state), answers)


def leaderboard_rows(state: SearchState) -> tuple[LeaderboardRow, ...]:
    """Rank the candidates and baselines of a folded search.

    Skipped baselines are left out, and so are gradient steps, which have no score of their own.
    """
    baselines = [name for name, baseline in state.baselines.items() if baseline.recipe is not None]
    names = tuple(state.spec.get("objectives") or ())  # empty for a search with one objective
    candidates = [name for name, one in state.candidates.items() if not one.gradient]
    front = set(pareto_set(state.reported.values())) if names else set()
    rows = [row_of(state, name, names, front) for name in (*baselines, *candidates)]
    return tuple(replace(row, rank=rank) for rank, row in enumerate(sorted(rows, key=_order), start=1))


def shown_rows(rows: Sequence[LeaderboardRow], top: int) -> tuple[LeaderboardRow, ...]:
    """Return the first `top` rows, and the fine-tuned model and the placebo wherever they are."""
    return (*rows[:top], *(row for row in rows[top:] if row.kind in (TRAINED, PLACEBO)))


def _order(row: LeaderboardRow) -> tuple[bool, float, bool, float]:
    merit = row.fitness if row.score is None else row.score
    return merit is None, sum(row.violations.values()), row.sample is not None, -(merit or 0.0)


def _run_ids(run_dir: RunDir, search_id: str) -> dict[str, str]:
    from evosearch.errors import TrackingError
    from evosearch.tracking.mlflow import run_ids

    try:
        return run_ids(run_dir.tracking, search_id)
    except TrackingError:  # the tracking store may be down; the ledger is the record
        return {}
