"""Check of a spec's `objectives` against what a search measures."""

from collections.abc import Sequence

from evosearch.errors import SpecError, did_you_mean
from evosearch.evaluation.suites.suite import Suite
from evosearch.search.objectives import FITNESS, HOPS, NAMES, SCORE


def check_objectives(objectives: Sequence[str], suite: Suite, is_route: bool, where: str) -> None:
    """Check that every objective is known, measured and named once.

    Args:
        objectives: Names, as the spec gives them.
        suite: The suite whose tasks are measured.
        is_route: Whether candidates are routes, which have `hops`.
        where: File and key of the objectives, for errors.

    Raises:
        SpecError: An objective is unknown, named twice, or reported only; a task has the name of a built-in objective;
            `hops` is an objective of a merge.
    """
    tasks = [task.name for task in suite.tasks]
    measured = [task.name for task in suite.tasks if not task.report_only or task in suite.guarded]
    scored = [] if suite.told == "teachers" else [SCORE]  # right answers of the search split are not read
    known = [FITNESS, *scored, *measured, *([HOPS] if is_route else [])]
    allowed = f"Objectives of this search: {', '.join(known)}"
    for index, name in enumerate(objectives):
        key = f"{where}[{index}]"
        if name in objectives[:index]:
            raise SpecError(key, f"'{name}' is given twice", "Each objective once", "Remove it")
        if name in NAMES and name in tasks:
            what = f"'{name}' is both a task of the suite and a built-in objective"
            raise SpecError(key, what, next="Give the task another `name` in the suite")
        if name == HOPS and not is_route:
            raise SpecError(key, "'hops' is the length of a route, and the recipe is a merge", allowed)
        if name in known:
            continue
        if name in tasks:
            next = "Add a guard for it, or remove its `report_only`"
            raise SpecError(key, f"'{name}' is report_only", allowed, next)
        raise SpecError(key, f"unknown objective '{name}'", allowed, did_you_mean(name, known))
