"""Tables of `evosearch leaderboard`: candidates and baselines, the Pareto set, the finalists."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from evosearch.cli.tables import Column, make_table, number, task_heading, with_interval
from evosearch.evaluation.types import SPLITS
from evosearch.promotion.disclosure import CONTAMINATED, opened
from evosearch.reporting.generalization import FinalistRow
from evosearch.reporting.leaderboard import LeaderboardRow
from evosearch.reporting.pareto_table import ParetoRow


def leaderboard_columns(rows: Sequence[LeaderboardRow]) -> list[Column[LeaderboardRow]]:
    """Return the columns of the leaderboard; a new column is one line here."""
    return [
        Column("rank", lambda row: str(row.rank)),
        Column("candidate", lambda row: row.candidate, left=True),
        Column("score", lambda row: number(row.score, 1)),
        Column("fitness", lambda row: number(row.fitness, 4)),
        *_task_columns(rows),
        Column("valid.", lambda row: _split_score(row, "validation")),
        Column("test", lambda row: _split_score(row, "test")),
        Column("state", _state, left=True),
    ]


def leaderboard_table(rows: Sequence[LeaderboardRow], title: str = "Leaderboard (score on the search split)") -> Table:
    """Show candidates and baselines with their scores by split, task metrics on `search` and broken guards."""
    return make_table(title, leaderboard_columns(rows), rows)


def _task_columns(rows: Sequence[LeaderboardRow]) -> list[Column[LeaderboardRow]]:
    scored = [row.splits["search"].tasks for row in rows if "search" in row.splits]
    headings = {task: task_heading(task, score) for tasks in scored for task, score in tasks.items()}
    return [_task_column(task, headings[task]) for task in sorted(headings)]


def _task_column(task: str, heading: str) -> Column[LeaderboardRow]:
    def cell(row: LeaderboardRow) -> str:
        score = row.splits["search"].tasks.get(task) if "search" in row.splits else None
        return number(score.value if score else None, 3)

    return Column(heading, cell)


def _split_score(row: LeaderboardRow, split: str) -> str:
    return number(row.splits[split].score if split in row.splits else None, 1)


def _state(row: LeaderboardRow) -> str:
    """Format the state with the sample and the broken guards: `scored on 45 items; breaks sort by 3.2`."""
    state = row.state + (f" on {row.sample} items" if row.sample else "")
    broken = [f"{task} by {points:.1f}" for task, points in row.violations.items()]
    return f"{state}; breaks {', '.join(broken)}" if broken else state


def pareto_table(rows: Sequence[ParetoRow]) -> Table:
    """Show the Pareto set, best at the first objective first; values with standard errors."""
    columns = [
        Column[ParetoRow]("candidate", lambda row: row.candidate, left=True),
        *(_objective_column(name) for name in rows[0].objectives),
        Column("score", lambda row: number(row.score, 1)),
        Column("fitness", lambda row: number(row.fitness, 4)),
    ]
    return make_table("Pareto set (objectives as reported to the optimizer)", columns, rows)


def _objective_column(name: str) -> Column[ParetoRow]:
    return Column(name, lambda row: f"{row.objectives[name].value:.4g} ± {row.objectives[name].stderr:.2g}")


def finalists_table(finalists: Sequence[FinalistRow], unchosen: Sequence[FinalistRow] = ()) -> Table:
    """Show the finalists' scores and their changes between splits; base and parents for comparison."""
    columns = [
        Column[FinalistRow]("model", lambda row: row.candidate + ("" if row.rank else " (not selected)"), left=True),
        *(_finalist_score(split) for split in SPLITS),
        _gap_column("search", "validation"),
        _gap_column("validation", "test"),
    ]
    title = "Finalists: scores, and their change from split to split (95% intervals)"
    return make_table(title, columns, [*finalists, *unchosen])


def _finalist_score(split: str) -> Column[FinalistRow]:
    return Column(split, lambda row: number(row.scores[split].value if split in row.scores else None, 1))


def _gap_column(before: str, after: str) -> Column[FinalistRow]:
    """Show a gap as the change of the score: `-5.2 [-9.0, -1.4]` for a loss of 5.2 points."""

    def cell(row: FinalistRow) -> str:
        gap = next((one for one in row.gaps if (one.from_split, one.to_split) == (before, after)), None)
        return with_interval(-gap.value, -gap.upper, -gap.lower, sign="+") if gap else ""

    return Column(f"{before} to {after}", cell)


def show_pareto(console: Console, rows: Sequence[ParetoRow]) -> None:
    """Print the Pareto set, if there is one."""
    if rows:
        console.print(pareto_table(rows))


def show_finalists(console: Console, finalists: Sequence[FinalistRow], unchosen: Sequence[FinalistRow]) -> None:
    """Print the finalists, if there are any."""
    if finalists:
        console.print(finalists_table(finalists, unchosen))


def show_disclosure(console: Console, openings: int, contaminated: bool) -> None:
    """Print what must accompany test figures: openings of the test set, and acknowledged contamination."""
    console.print(opened(openings), style="dim")
    if contaminated:
        console.print(CONTAMINATED, style="yellow")
