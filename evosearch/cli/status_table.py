"""Table of `evosearch status`: searches of this machine, of a ledger or of a cluster."""

from collections.abc import Sequence

from rich.table import Table

from evosearch.cli.tables import make_table
from evosearch.durations import clock, duration
from evosearch.promotion.disclosure import CONTAMINATED
from evosearch.reporting.columns import Column, fitness_number
from evosearch.reporting.status import StatusRow

STATE_CHARACTERS = 40


def status_table(rows: Sequence[StatusRow], title: str = "Searches") -> Table:
    """Show searches with their progress; speed and time left only if one of them runs."""
    runs = any(row.per_minute is not None or row.seconds_left is not None for row in rows)
    columns = [
        Column[StatusRow]("name", lambda row: row.name, left=True),
        Column("state", _state, left=True),
        Column("done", _done),
        Column("failed", lambda row: "" if row.failed is None else str(row.failed), spare=4),
        Column("best fitness", _best_fitness, spare=1),
        *(_SPEED if runs else ()),
        Column("promoted", _promoted, left=True),
        Column("opened", _opened, spare=5),
        Column("updated", _updated, left=True, spare=2),
    ]
    table = make_table(title, columns, rows)
    if any(row.contamination_acknowledged for row in rows):
        table.caption, table.caption_justify = f"* {CONTAMINATED}", "left"
    return table


def unreadable(rows: Sequence[StatusRow]) -> list[str]:
    """Return what is wrong with each ledger that cannot be read, in full: a column would be cut or left out."""
    return [f"{row.name}: {row.problem}" for row in rows if _unreadable(row) and row.problem]


_SPEED = (
    Column[StatusRow]("per minute", lambda row: "" if row.per_minute is None else f"{row.per_minute:.1f}", spare=3),
    Column[StatusRow]("left", lambda row: "" if row.seconds_left is None else duration(row.seconds_left)),
)


def _unreadable(row: StatusRow) -> bool:
    """Whether the row represents an unreadable ledger, whose problem `unreadable` tells."""
    return row.updated is None


def _state(row: StatusRow) -> str:
    state = f"{row.state}: {row.problem}" if row.problem and not _unreadable(row) else row.state
    return state if len(state) <= STATE_CHARACTERS else f"{state[: STATE_CHARACTERS - 1]}…"


def _done(row: StatusRow) -> str:
    """Format the finished candidates: `12/18` of a budget, after the stage if one other than the search is running."""
    if row.done is None:
        return ""
    done = str(row.done) if row.total is None else f"{row.done}/{row.total}"
    stage = row.stage or "search"
    return done if row.state != "running" or stage.endswith("search") else f"{stage} {done}"


def _best_fitness(row: StatusRow) -> str:
    return "" if _unreadable(row) else fitness_number(row.best_fitness)


def _promoted(row: StatusRow) -> str:
    """Format the promoted model, or the winner of a stage."""
    found = (row.model or row.promoted) if row.promoted else None
    found = found or (f"{row.model or row.winner} (stage)" if row.winner else "-")
    return "" if _unreadable(row) else found


def _opened(row: StatusRow) -> str:
    times = "" if row.test_openings is None else f"{row.test_openings}x"
    return times + (" *" if row.contamination_acknowledged else "")


def _updated(row: StatusRow) -> str:
    return "" if row.updated is None else clock(row.updated)
