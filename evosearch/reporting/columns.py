"""Columns of tables on terminals and in notebooks: a heading, and a function from a row to a cell."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from evosearch.evaluation.types import TaskScore

Row = TypeVar("Row")


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column of a table.

    Attributes:
        heading: Its heading.
        cell: A row's cell.
        left: Aligned left and never wrapped, for names and states.
        spare: 0 for a column that is always shown. Of the others, those with the largest number are left out first
            where the terminal is too narrow for all, and of equal ones the last.
    """

    heading: str
    cell: Callable[[Row], str]
    left: bool = False
    spare: int = 0


def number(value: float | None, digits: int) -> str:
    """Format a number; `-` for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def fitness_number(value: float | None) -> str:
    """Format a fitness: points with two digits, log-probabilities (and points near 0) with four; `-` for None."""
    return number(value, 4 if value is None or abs(value) < 10 else 2)


def with_interval(value: float, lower: float, upper: float, sign: str = "") -> str:
    """Format an estimate with its interval: `81.2 [79.2, 83.1]`, or `+5.0 [+1.2, +8.8]` with the sign `+`."""
    return f"{value:{sign}.1f} [{lower:{sign}.1f}, {upper:{sign}.1f}]"


def task_heading(task: str, score: TaskScore) -> str:
    """Return a task's heading; for an unlearning target the table shows the fraction of wrong answers."""
    return f"not {task}" if score.metric.startswith("1-") else task
