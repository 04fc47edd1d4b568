"""Budgets: when a search stops, the reason it gives, and that a resume stops there again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks._simulated.searches import SEARCH, heavy_tailed, score, search
from benchmarks._simulated.workers import SimulatedWorkers
from benchmarks._simulated.world import World
from evosearch.errors import SpecError
from evosearch.search.budget import Budget
from evosearch.search.ledger import store
from evosearch.search.space.dimensions import Evaluation
from evosearch.search.state import SearchState
from evosearch.spec.config import BudgetConfig

WORLD = World(models=2, per=None, items=10)  # 20 items per candidate
GRID = World(models=2, per=None, densities=False, choices=(0.1, 0.4, 0.7), items=10)  # nine recipes
BOTH = pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
Stopped = tuple[str, SearchState]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Stopped]:
    """`run(budget, asynchronous, world, **optimizer)` starts or resumes the search of this test."""
    configure = store._configure_sqlite

    def quick(connection: Any, record: Any) -> None:
        configure(connection, record)
        connection.execute("PRAGMA synchronous=OFF")  # power cuts are not tested here

    monkeypatch.setattr(store, "_configure_sqlite", quick)

    def go(budget: Budget, asynchronous: bool = False, world: World = WORLD, **more: Any) -> Stopped:
        options = {"name": "random", "population": 6, "seed": 1, "asynchronous": asynchronous} | more
        workers = SimulatedWorkers(4, heavy_tailed(), score(world), lambda: 0.0)
        reason, recorder = search(tmp_path, world, workers, options, budget)
        recorder.ledger.close()
        return reason, SearchState.from_events(recorder.ledger.events(SEARCH))

    return go


def values(state: SearchState) -> list[float | None]:
    """The reported fitness of each candidate, in report order."""
    return [one.fitness and one.fitness.value for one in state.reported.values()]


@BOTH
def test_candidates(run: Callable[..., Stopped], asynchronous: bool) -> None:
    reason, state = run(Budget(candidates=20), asynchronous)
    assert (reason, state.proposed, len(state.reported)) == ("candidates", 20, 20)
    assert state.groups == (20 if asynchronous else 4)  # three generations of 6, and 2 of the fourth


@BOTH
@pytest.mark.parametrize(("items", "candidates"), [(20 * 15, 15), (20 * 15 + 19, 15)])
def test_items(run: Callable[..., Stopped], asynchronous: bool, items: int, candidates: int) -> None:
    """It never exceeds the budget, and stops when the next candidate would."""
    reason, state = run(Budget(items=items), asynchronous)
    assert (reason, state.proposed, len(state.reported)) == ("items", candidates, candidates)


@BOTH
def test_duplicates_take_no_items(run: Callable[..., Stopped], asynchronous: bool) -> None:
    reason, state = run(Budget(items=20 * 8), asynchronous, GRID)
    new = [name for name, one in state.candidates.items() if one.duplicate_of is None]
    assert (reason, len(new)) == ("items", 8)
    assert state.proposed > 8


@BOTH
def test_a_budget_of_items_ends_when_nothing_new_is_proposed(run: Callable[..., Stopped], asynchronous: bool) -> None:
    reason, state = run(Budget(items=20 * 10), asynchronous, GRID)
    assert reason == "nothing new: 256 duplicates in a row"
    assert state.distinct == {Evaluation(): 9}
    counted, _ = run(Budget(items=20 * 10, candidates=state.proposed + 10), asynchronous, GRID)
    assert counted == "candidates", "who counts candidates is given as many"


@BOTH
def test_target(run: Callable[..., Stopped], asynchronous: bool) -> None:
    _, whole = run(Budget(candidates=18), asynchronous)
    told = values(whole)
    assert told[0] is not None
    aim = sorted(value for value in told if value is not None)[-1]
    reason, state = run(Budget(candidates=100, target=aim), asynchronous)
    assert (reason, state.proposed) == ("target", 18), "what is recorded has reached it already"
    reason, state = run(Budget(candidates=40, target=aim + 100.0), asynchronous)
    assert (reason, state.proposed) == ("candidates", 40)


def test_only_candidates_without_violations_reach_the_target() -> None:
    from evosearch.search.ledger.events import Event

    def told(name: str, value: float, violations: list[float]) -> Event:
        one = {"candidate": name, "value": value, "stderr": 0.1, "n": 3, "state": "scored", "violations": violations}
        return Event(1, 0.0, "told", {"group": 0, "observations": [one]})

    asked: Any = type("Asked", (), {})()
    asked.state = SearchState.from_events([told("0", 9.0, [0.0, 0.5]), told("1", 2.0, [0.0, 0.0])])
    assert Budget(target=3.0).reason(asked) is None
    asked.state.apply(told("2", 3.0, [0.0, 0.0]))
    assert Budget(target=3.0).reason(asked) == "target"


@BOTH
def test_patience(run: Callable[..., Stopped], asynchronous: bool) -> None:
    reason, state = run(Budget(candidates=300, patience=7), asynchronous)
    assert reason == "patience"
    told = [value for value in values(state) if value is not None]
    since = len(told) - 1 - told.index(max(told))
    assert state.reported_since_best == since
    most = (
        7 + 4 + 1 if asynchronous else 7 + 6 - 1
    )  # pending candidates are still told: the running ones, or a generation
    assert 7 <= since <= most


@BOTH
@pytest.mark.parametrize("budget", [Budget(candidates=300, patience=7), Budget(candidates=300, target=-1.9)])
def test_it_stops_there_again_unless_the_budget_changes(
    run: Callable[..., Stopped], asynchronous: bool, budget: Budget
) -> None:
    reason, state = run(budget, asynchronous)
    assert reason in ("patience", "target")
    again, same = run(budget, asynchronous)
    assert again == reason
    assert (same.candidates, same.reported) == (state.candidates, state.reported)
    more, longer = run(Budget(candidates=state.proposed + 6), asynchronous)
    assert (more, longer.proposed) == ("candidates", state.proposed + 6)


def test_failures_and_duplicates_count_toward_patience(run: Callable[..., Stopped]) -> None:
    reason, state = run(Budget(candidates=300, patience=30), True, GRID)
    assert reason == "patience"
    assert state.proposed < 9 + 60


def test_a_new_optimizer_has_its_own_patience() -> None:
    from evosearch.search.ledger.events import Event

    row = {"value": None, "stderr": None, "n": 0, "state": "failed"}
    state = SearchState.from_events(
        Event(index + 1, 0.0, "told", {"group": 0, "observations": [row | {"candidate": str(index)}]})
        for index in range(5)
    )
    assert state.reported_since_best == 5
    state.apply(Event(6, 0.0, "restarted", {"start": {}, "reason": ""}))
    assert state.reported_since_best == 0


def test_hours_count_all_sessions_by_a_clock_that_cannot_be_set(
    run: Callable[..., Stopped], monkeypatch: pytest.MonkeyPatch
) -> None:
    from evosearch.search import budget
    from evosearch.search.ledger import ledger

    now, days = 1000.0, 11.0

    class Clock:
        def __getattr__(self, name: str) -> Any:
            import time

            return getattr(time, name)

        def time(self) -> float:
            """Return the time of day, which is moved by days between any two readings."""
            nonlocal days
            days = -days * 1.1
            return 1e9 + 86400.0 * days

        def monotonic(self) -> float:
            nonlocal now
            now += 30.0  # between any two readings of the clock
            return now

    monkeypatch.setattr(ledger, "time", Clock())
    monkeypatch.setattr(budget, "time", Clock())
    reason, state = run(Budget(hours=0.25))
    assert reason == "hours"
    assert 6 <= state.proposed <= 18
    assert 0.25 <= state.seconds_before / 3600.0 < 0.5  # pending candidates are still scored
    now = 10.0  # the machine was restarted
    more, longer = run(Budget(hours=0.5))
    assert more == "hours"
    assert longer.proposed > state.proposed
    assert 0.5 <= longer.seconds_before / 3600.0 < 1.0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give candidates, hours or items: target and patience alone"),
        ({"target": 1.0, "patience": 5}, "give candidates, hours or items: target and patience alone"),
        ({"items": 0}, "items: Input should be greater than 0, got 0"),
        ({"candidates": 4, "patience": 0}, "patience: Input should be greater than 0, got 0"),
        ({"candidates": 4, "target": float("nan")}, "target: Input should be a finite number, got nan"),
        ({"candidates": 4, "patience": "long"}, "patience: got 'long'. A whole number"),
    ],
)
def test_bad_budgets_are_refused(given: dict[str, Any], said: str) -> None:
    from evosearch.documents import validate

    with pytest.raises(SpecError) as caught:
        validate(BudgetConfig, given, "night.yaml: budget", SpecError)
    assert str(caught.value).startswith("night.yaml: budget")
    assert said in str(caught.value)
