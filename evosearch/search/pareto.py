"""The Pareto set of a search with several objectives: candidates that none is better than in all of them. Pure.

Candidates that break no guard are compared; where all break one, nothing is in the set. Told values are estimates: a
candidate in the set may owe its place to luck, and the set is no claim about the test split.
"""

from collections.abc import Iterable, Mapping, Sequence

from evosearch.search.records import Reported

Values = tuple[float, ...]  # one an objective, larger is better


def dominates(one: Values, other: Values) -> bool:
    """Whether `one` is nowhere worse than `other` and somewhere better: equal ones do not dominate each other."""
    return one != other and all(mine >= theirs for mine, theirs in zip(one, other, strict=True))


class Front:
    """The set as candidates become known, one after the other: O(candidates × set)."""

    def __init__(self) -> None:
        self.members: dict[str, Values] = {}  # candidate → its values, as they became known

    def add(self, candidate: str, values: Values) -> tuple[bool, list[str]]:
        """Whether it is in the set, and who leaves it."""
        if any(dominates(member, values) for member in self.members.values()):
            return False, []
        leaving = [name for name, member in self.members.items() if dominates(values, member)]
        for name in leaving:
            del self.members[name]
        self.members[candidate] = values
        return True, leaving


def reported_values(reported: Reported) -> Values | None:
    """Return the reported objectives; None for a failure, a broken guard, or a search with one objective."""
    if not reported.objectives or reported.violation > 0:
        return None
    return tuple(one.value for one in reported.objectives)


def pareto_set(reported: Iterable[Reported]) -> list[str]:
    """Return the candidates of the set, the best at the first objective first."""
    front = Front()
    for one in reported:
        if (values := reported_values(one)) is not None:
            front.add(one.candidate, values)
    return ordered(front.members)


def ordered(members: Mapping[str, Sequence[float]]) -> list[str]:
    """By the first objective, best first, then by the others; equal ones as they were asked."""
    return sorted(members, key=lambda name: ([-value for value in members[name]], int(name)))
