"""The Pareto set of a search with several objectives: rows, and the HTML page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evosearch.errors import SpecError
from evosearch.evaluation.types import Estimate
from evosearch.reporting.columns import Column, fitness_number, number
from evosearch.reporting.leaderboard_row import LeaderboardRow
from evosearch.search.pareto import ordered
from evosearch.tracking.pareto_page import ParetoPoint, pareto_page

PARETO_TITLE = "Pareto set (objectives as reported to the optimizer)"


@dataclass(frozen=True)
class ParetoRow:
    """One recipe of the Pareto set."""

    candidate: str
    title: str  # such as `#17`
    recipe_id: str
    score: float | None  # on the search split
    fitness: float | None
    objectives: Mapping[str, Estimate]


def pareto_rows(rows: Sequence[LeaderboardRow]) -> tuple[ParetoRow, ...]:
    """List the Pareto set, each recipe once, ordered by the first objective."""
    found = {row.candidate: row for row in rows if row.pareto and not row.state.startswith("duplicate")}
    members = {name: [one.value for one in row.objectives.values()] for name, row in found.items()}
    chosen = [found[name] for name in ordered(members)]
    return tuple(
        ParetoRow(row.candidate, row.title, row.recipe_id, row.score, row.fitness, row.objectives) for row in chosen
    )


def pareto_columns(rows: Sequence[ParetoRow]) -> list[Column[ParetoRow]]:
    """Return the columns of the Pareto set; objectives with their standard errors."""
    return [
        Column("candidate", lambda row: row.title, left=True),
        *(_objective_column(name) for name in (rows[0].objectives if rows else ())),
        Column("score", lambda row: number(row.score, 1)),
        Column("fitness", lambda row: fitness_number(row.fitness)),
    ]


def _objective_column(name: str) -> Column[ParetoRow]:
    return Column(name, lambda row: f"{row.objectives[name].value:.4g} ± {row.objectives[name].stderr:.2g}")


def write_pareto_page(name: str, rows: Sequence[LeaderboardRow], path: Path) -> None:
    """Write the Pareto set of a search as one HTML file.

    Args:
        name: Name of the search.
        rows: Its leaderboard.
        path: File to write.

    Raises:
        SpecError: The search has one objective, or the file cannot be written.
    """
    reported = {row.candidate: row for row in rows if row.pareto is not None and row.objectives}
    if not reported:
        what = f"'{name}' has no Pareto set: it has one objective, or no scored candidate yet"
        raise SpecError("--page", what, next="List several `objectives` in the spec")
    members = [row.candidate for row in pareto_rows(rows)]
    others = [row.candidate for row in reported.values() if not row.pareto]
    points = [
        ParetoPoint(one, reported[one].recipe_id, bool(reported[one].pareto), reported[one].objectives)
        for one in (*members, *others)
    ]
    try:
        path.write_text(pareto_page(name, list(points[0].objectives), points), encoding="utf-8")
    except OSError as error:
        raise SpecError("--page", f"cannot write {path}: {error.strerror}", next="Choose another file") from None
