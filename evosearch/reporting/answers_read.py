"""Right answers that a search read, by task: of which splits, and whether its fitness used them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evosearch.evaluation.suites.suite import Suite
from evosearch.evaluation.types import SPLITS
from evosearch.promotion.unverified import UNVERIFIED
from evosearch.search.state import SearchState


@dataclass(frozen=True)
class TaskAnswers:
    """Right answers of one task.

    Attributes:
        task: Name of the task.
        in_fitness: Whether the fitness reads them.
        splits: Splits on which they are read, by the fitness or by the score.
        teacher: The model that the fitness compares candidates with in place of right answers, `auto` before it is
            chosen; None without one.
    """

    task: str
    in_fitness: bool
    splits: tuple[str, ...]
    teacher: str | None = None


def task_answers(suite: Suite, teachers: Mapping[str, str]) -> tuple[TaskAnswers, ...]:
    """List the tasks that are not report-only.

    Args:
        suite: The suite.
        teachers: Task → its teacher; empty if the fitness needs none.
    """
    return tuple(
        TaskAnswers(
            task.name,
            suite.told != "teachers",
            tuple(split for split in SPLITS if suite.reads_answers(task, split)),
            teachers.get(task.name),
        )
        for task in suite.fitted
    )


def recorded_answers(state: SearchState) -> tuple[TaskAnswers, ...]:
    """List the tasks of a recorded search that are not report-only."""
    return task_answers(Suite.model_validate(state.circumstances.suite), state.teachers)


def answers_read(state: SearchState) -> list[str]:
    """Return statements on a recorded search; none if its fitness read right answers."""
    unverified = state.gated is not None and bool(state.gated.decision["unverified"])
    return [*statements(recorded_answers(state)), *([UNVERIFIED] if unverified else [])]


def statements(tasks: Sequence[TaskAnswers]) -> list[str]:
    """Return what the fitness used in place of right answers, and where these were read; empty if it used them."""
    if all(task.in_fitness for task in tasks):
        return []
    named = ", ".join(f"{task.task}: {task.teacher}" for task in tasks if task.teacher)
    found = [f"The fitness follows teachers ({named}) and reads no right answers."]
    for splits in dict.fromkeys(task.splits for task in tasks):
        names = ", ".join(task.task for task in tasks if task.splits == splits)
        found.append(
            f"Right answers are read on {' and '.join(splits)}: {names}."
            if splits
            else f"There are no right answers of {names}."
        )
    return found
