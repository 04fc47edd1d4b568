"""The Pareto set of a search with several objectives: candidates that none is better than in all of them. Pure.

Candidates that break no guard are compared; where all break one, nothing is in the set. Told values are estimates: a
candidate in the set may owe its place to luck, and the set is no claim about the test split.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

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


def values_told(told: Mapping[str, Any]) -> Values | None:
    """The objectives of one observation as it is recorded; None of a failure, or where a guard is broken."""
    broken = any(amount > 0 for amount in told.get("violations", ()))
    if told["state"] != "scored" or broken or "objectives" not in told:
        return None
    return tuple(float(one["value"]) for one in told["objectives"])


def pareto_set(told: Iterable[Mapping[str, Any]]) -> list[str]:
    """The candidates of the set, the best at the first objective first.

    Args:
        told: entries of `told` events, of one candidate each.
    """
    front = Front()
    for one in told:
        if (values := values_told(one)) is not None:
            front.add(str(one["candidate"]), values)
    return ordered(front.members)


def ordered(members: Mapping[str, Sequence[float]]) -> list[str]:
    """By the first objective, best first, then by the others; equal ones as they were asked."""
    return sorted(members, key=lambda name: ([-value for value in members[name]], int(name)))
