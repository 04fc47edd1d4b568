"""Tables of `evosearch leaderboard`: candidates and baselines, the Pareto set, the finalists."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from evosearch.cli.tables import make_table
from evosearch.evaluation.statistics.rank_correlation import RankCorrelation
from evosearch.promotion.disclosure import CONTAMINATED, opened
from evosearch.reporting.answers_read import TaskAnswers, statements
from evosearch.reporting.generalization import FINALISTS_TITLE, FinalistRow, finalist_columns
from evosearch.reporting.leaderboard_row import (
    LEADERBOARD_TITLE,
    LeaderboardRow,
    folded_numbers,
    leaderboard_columns,
)
from evosearch.reporting.pareto_table import PARETO_TITLE, ParetoRow, pareto_columns


def leaderboard_table(rows: Sequence[LeaderboardRow]) -> Table:
    """Show candidates and baselines with their scores by split, task metrics on `search` and broken guards."""
    return make_table(LEADERBOARD_TITLE, leaderboard_columns(rows), rows)


def pareto_table(rows: Sequence[ParetoRow]) -> Table:
    """Show the Pareto set, ordered by the first objective; values with standard errors."""
    return make_table(PARETO_TITLE, pareto_columns(rows), rows)


def finalists_table(finalists: Sequence[FinalistRow], unchosen: Sequence[FinalistRow] = ()) -> Table:
    """Show the scores of finalists, base and parents, and their changes between splits."""
    return make_table(FINALISTS_TITLE, finalist_columns(finalists), [*finalists, *unchosen])


def show_numbers(console: Console, rows: Sequence[LeaderboardRow]) -> None:
    """Print the numbers of the winner, or else of the best candidate, in summary, if it has holes with many."""
    numbers = folded_numbers(rows)
    if numbers:
        console.print(numbers, style="dim", markup=False, highlight=False)


def show_pareto(console: Console, rows: Sequence[ParetoRow]) -> None:
    """Print the Pareto set, if there is one."""
    if rows:
        console.print(pareto_table(rows))


def show_finalists(console: Console, finalists: Sequence[FinalistRow], unchosen: Sequence[FinalistRow]) -> None:
    """Print the finalists, if there are any."""
    if finalists:
        console.print(finalists_table(finalists, unchosen))


def show_correlation(console: Console, found: RankCorrelation | None) -> None:
    """Print the rank correlation of fitness and score, with its warning, once finalists are scored."""
    if found:
        console.print(str(found), style="dim", highlight=False)
        if found.warning:
            console.print(found.warning, style="yellow", highlight=False)


def show_answers(console: Console, answers: Sequence[TaskAnswers]) -> None:
    """Print what the fitness used in place of right answers, if it read none."""
    for text in statements(answers):
        console.print(text, style="dim", highlight=False)


def show_disclosure(console: Console, openings: int, contaminated: bool) -> None:
    """Print the disclosures of test scores: openings of the test set, and acknowledged contamination."""
    if openings:
        console.print(opened(openings), style="dim")
    if contaminated:
        console.print(CONTAMINATED, style="yellow")
