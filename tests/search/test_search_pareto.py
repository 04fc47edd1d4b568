"""The Pareto set against its definition, with ties, duplicates, failures and broken guards."""

import json

from hypothesis import given
from hypothesis import strategies as st

from evosearch.evaluation.types import Estimate
from evosearch.search.objectives import measured, with_hops
from evosearch.search.pareto import Front, dominates, pareto_set
from evosearch.search.records import CardSummary, Reported
from evosearch.search.space.dimensions import Observation


def told(name: int, *values: float, violation: float = 0.0) -> Reported:
    objectives = tuple(Estimate(value, 0.1, 4) for value in values)
    return Reported(str(name), Estimate(sum(values), 0.2, 8), (0.0, violation), objectives)


FAILED = Reported("9", None)


def test_trade_offs_are_in_the_set() -> None:
    assert pareto_set([told(0, 1, 1), told(1, 3, 0), told(2, 0, 3), told(3, 0, 0), told(4, 2, 2)]) == ["1", "4", "2"]


def test_ties_are_all_in_the_set_and_failures_and_violations_are_not() -> None:
    assert pareto_set([told(0, 1, 1), told(1, 1, 1), told(2, 9, 9, violation=0.1), FAILED]) == ["0", "1"]
    assert pareto_set([told(0, 1, 1, violation=2.0), FAILED]) == []


values = st.lists(st.tuples(*[st.integers(0, 3).map(float)] * 3), max_size=12)


@given(values)
def test_is_the_non_dominated_set_in_any_order_of_insertion(
    drawn: list[tuple[float, ...]],
) -> None:
    expected = {str(i) for i, one in enumerate(drawn) if not any(dominates(other, one) for other in drawn)}
    for order in (range(len(drawn)), reversed(range(len(drawn)))):
        assert set(pareto_set([told(i, *drawn[i]) for i in order])) == expected


def test_add_returns_whether_it_enters_and_what_it_displaces() -> None:
    front = Front()
    assert front.add("0", (1.0, 1.0)) == (True, [])
    assert front.add("1", (0.0, 2.0)) == (True, [])
    assert front.add("2", (0.0, 1.0)) == (False, [])
    assert front.add("3", (2.0, 2.0)) == (True, ["0", "1"])
    assert front.members == {"3": (2.0, 2.0)}


def test_objectives_are_read_from_a_card_and_a_route() -> None:
    card = CardSummary(
        candidate="0",
        split="search",
        fitness=Estimate(-1.5, 0.1, 20),
        score=40.0,
        score_stderr=3.0,
        task_fitness={"sort": Estimate(-1.0, 0.2, 10)},
    )
    found = measured(("sort", "score", "hops", "fitness"), card)
    recipe = {"routing": {"hops": [{"model": "a", "layer": 0}] * 7}}
    assert with_hops(("sort", "score", "hops", "fitness"), found, recipe) == (
        Estimate(-1.0, 0.2, 10),
        Estimate(40.0, 3.0, 20),
        Estimate(-7.0, 0.0, 20),
        Estimate(-1.5, 0.1, 20),
    )


def test_a_recorded_observation_is_replayed_unchanged() -> None:
    recorded = json.loads(json.dumps(told(3, 1.0, 2.0, violation=0.5).to_payload()))
    found = Reported.from_payload(recorded).observation({"x": 1.0})
    objectives = (Estimate(1.0, 0.1, 4), Estimate(2.0, 0.1, 4))
    assert found == Observation("3", {"x": 1.0}, objectives, (0.0, 0.5), fitness=Estimate(3.0, 0.2, 8))
    assert Reported.from_payload(FAILED.to_payload()).observation({"x": 1.0}) == Observation(
        "9", {"x": 1.0}, (), (), "failed"
    )
