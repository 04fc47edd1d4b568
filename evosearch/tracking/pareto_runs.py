"""The Pareto set as runs show it: tags of the candidates that enter or leave it, values of objectives, and its page."""

from dataclasses import replace

from evosearch.search.pareto import Front, ordered, reported_values
from evosearch.search.records import Reported
from evosearch.tracking.changes import Point
from evosearch.tracking.metrics import FRACTION, readable, safe_name
from evosearch.tracking.pareto_page import ParetoPoint, pareto_page


class ParetoRuns:
    """The Pareto set of a search with several objectives, as candidates are reported.

    Attributes:
        objectives: Names of the objectives.
        points: Candidate → its point on the page.
    """

    def __init__(self) -> None:
        self.objectives: tuple[str, ...] = ()
        self.points: dict[str, ParetoPoint] = {}
        self._front = Front()

    def add(self, one: Reported, recipe_id: str, now: int) -> tuple[bool, list[str], list[Point]]:
        """Add a candidate.

        Returns:
            Whether it enters the set, the candidates that leave it, and the points of its objectives.
        """
        values = reported_values(one)
        enters, leaving = self._front.add(one.candidate, values) if values is not None else (False, [])
        objectives = dict(zip(self.objectives, one.objectives, strict=True))
        self.points[one.candidate] = ParetoPoint(one.candidate, recipe_id, enters, objectives)
        points = [
            Point(safe_name(f"objective/{name}"), readable(estimate.value, FRACTION), 0, now)
            for name, estimate in objectives.items()
        ]
        return enters, leaving, points

    def members(self) -> list[str]:
        """Return the set, ordered by the first objective."""
        return ordered(self._front.members)

    def page(self, name: str) -> str:
        """Return the page of a search, with the candidates of the set first."""
        members = self.members()
        others = [candidate for candidate in self.points if candidate not in self._front.members]
        shown = [replace(self.points[one], pareto=one in self._front.members) for one in (*members, *others)]
        return pareto_page(name, self.objectives, shown)
