"""Pareto set of a search with several objectives: the candidates that no other one dominates. Pure.

Only candidates that break no guard are in the set. Reported values are estimates: a candidate may be in the set by
luck, and the set makes no claim about the test split.
"""

from collections.abc import Iterable, Mapping, Sequence

from evosearch.search.records import Reported

Values = tuple[float, ...]  # one per objective, larger is better


def dominates(one: Values, other: Values) -> bool:
    """Return whether `one` is at least as good as `other` in every objective and better in one."""
    return one != other and all(mine >= theirs for mine, theirs in zip(one, other, strict=True))


class Front:
    """Incremental Pareto set, in O(candidates × set)."""

    def __init__(self) -> None:
        self.members: dict[str, Values] = {}  # candidate → values, in insertion order

    def add(self, candidate: str, values: Values) -> tuple[bool, list[str]]:
        """Insert a candidate; return whether it is non-dominated and which members it displaces."""
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
    """Return the candidates of the set, sorted as in `ordered`."""
    front = Front()
    for one in reported:
        if (values := reported_values(one)) is not None:
            front.add(one.candidate, values)
    return ordered(front.members)


def ordered(members: Mapping[str, Sequence[float]]) -> list[str]:
    """Sort by the first objective, best first, then by the others; ties by ask index."""
    return sorted(members, key=lambda name: ([-value for value in members[name]], int(name)))
