"""Whether a spec's `objectives` are there to be measured."""

from typing import TYPE_CHECKING

from evosearch.errors import SpecError, did_you_mean
from evosearch.search.objectives import FITNESS, HOPS, NAMES, SCORE
from evosearch.search.space.routes import is_route

if TYPE_CHECKING:
    from evosearch.spec.spec import SearchSpec


def check_objectives(spec: "SearchSpec") -> None:
    """Raises:
    SpecError: an objective is named twice, is not known, is reported only, or is `hops` of a merge that has none.
    """
    named, suite = spec.config.objectives or (), spec.suite
    measured = [task.name for task in suite.tasks if not task.report_only or task in suite.guarded]
    routed = is_route(spec.template)
    known = [FITNESS, SCORE, *measured, *([HOPS] if routed else [])]
    for index, name in enumerate(named):
        where = spec.at(f"objectives[{index}]")
        if name in named[:index]:
            raise SpecError(where, f"'{name}' is named twice", "Each objective once", "Leave it out")
        if name in NAMES and any(task.name == name for task in suite.tasks):
            what = f"'{name}' is a task of the suite, and means something else here"
            raise SpecError(where, what, next="Give the task another `name` in the suite")
        if name == HOPS and not routed:
            raise SpecError(where, "'hops' is the length of a route, and the recipe has none", _listed(known))
        if name not in known:
            reported = any(task.name == name for task in suite.tasks)
            what = f"'{name}' is reported only" if reported else f"unknown objective '{name}'"
            next = "Guard it, or take `report_only` from it" if reported else did_you_mean(name, known)
            raise SpecError(where, what, _listed(known), next)


def _listed(known: list[str]) -> str:
    return f"Known here: {', '.join(known)}"
