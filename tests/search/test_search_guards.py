"""Guards and minibatches in the folded state: references, violations, finished candidates."""

from typing import Any

import pytest

from evosearch.evaluation.types import Estimate
from evosearch.search import guards
from evosearch.search.ledger.events import Event
from evosearch.search.records import Reported
from evosearch.search.space.dimensions import Evaluation
from evosearch.search.state import SearchState

GUARDS = [{"task": "a", "max_drop": 2.0}, {"task": "b", "max_drop": 0.0}]


def state(*written: tuple[str, dict[str, Any]], suite: dict[str, Any] | None = None) -> SearchState:
    started = {"name": "s", "spec": {}, "suite": {"guards": GUARDS} if suite is None else suite}
    events = [("started", started), *written]
    return SearchState.from_events(Event(seq, 0.0, *entry) for seq, entry in enumerate(events, start=1))


def baseline(name: str, kind: str) -> tuple[str, dict[str, Any]]:
    return "baseline", {"candidate": name, "kind": kind, "recipe_id": name}


def asked(name: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "asked", {"candidate": name, "group": 0, "genome": {}, "recipe": {}, "recipe_id": f"r{name}", **more}


def scored(name: str, value: float, split: str = "search", **more: Any) -> tuple[str, dict[str, Any]]:
    fitness = {"value": value, "stderr": 0.0, "n": 4}
    return "scored", {"candidate": name, "split": split, "score": value, "fitness": fitness, **more}


def told(*observations: tuple[str, float | None, list[float]]) -> tuple[str, dict[str, Any]]:
    rows = [
        Reported(name, None if value is None else Estimate(value, 0.1, 4), tuple(broken)).to_payload()
        for name, value, broken in observations
    ]
    return "told", {"group": 0, "observations": rows}


PARENTS = (
    baseline("parent:0", "parent"),
    baseline("parent:1", "parent"),
    scored("parent:0", 1.0, guards={"a": 50.0, "b": 10.0}),
    scored("parent:1", 1.0, guards={"a": 50.0, "b": 20.0}),
)


def test_the_reference_is_the_base_else_the_best_parent_of_each_task() -> None:
    assert state(*PARENTS).references() == {"a": "parent:0", "b": "parent:1"}
    base = (baseline("base", "base"), scored("base", 0.0, guards={"a": 1.0, "b": 1.0}))
    assert state(*PARENTS, *base).references() == {"a": "base", "b": "base"}
    assert state(*PARENTS, base[0]).references() == {"a": "parent:0", "b": "parent:1"}  # the base has no card
    uniform = (baseline("uniform", "uniform"), scored("uniform", 0.0, guards={"a": 99.0, "b": 99.0}))
    assert state(*uniform).references() == {}
    stage = (baseline("stage:weights", "stage"), scored("stage:weights", 0.0, guards={"a": 2.0, "b": 2.0}))
    assert state(*stage, *uniform).references() == {"a": "stage:weights", "b": "stage:weights"}
    assert state(*PARENTS, *stage).references() == {"a": "parent:0", "b": "parent:1"}


def test_a_violation_is_the_drop_beyond_the_limit() -> None:
    limits = guards.limits({"guards": GUARDS})
    assert guards.amounts(limits, {"a": 50.0, "b": 20.0}, {"a": 47.0, "b": 20.5}) == {"a": 1.0, "b": 0.0}
    assert guards.amounts(limits, {"a": 50.0}, {"a": 48.0, "b": 0.0}) == {"a": 0.0}
    found = state(*PARENTS, asked("0"), scored("0", 3.0, guards={"a": 45.0, "b": 19.0}))
    assert found.violations("0") == pytest.approx({"a": 3.0, "b": 1.0})
    assert found.violation("0") == pytest.approx(4.0)


def test_a_record_without_guards_has_no_violations() -> None:
    found = state(*PARENTS, asked("0"), scored("0", 3.0), suite={})
    assert (found.limits, found.violations("0"), found.best()) == ({}, {}, 3.0)


def test_the_best_breaks_no_guard_if_possible() -> None:
    kept, near, far = {"a": 60.0, "b": 60.0}, {"a": 47.0, "b": 60.0}, {"a": 30.0, "b": 60.0}
    written = [*PARENTS, asked("0"), asked("1"), scored("0", 9.0, guards=far), scored("1", 5.0, guards=near)]
    assert state(*written).best() == 5.0
    assert state(*written, asked("2"), scored("2", 1.0, guards=kept)).best() == 1.0


def test_the_references_are_computed_once_for_all_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    written = [asked(str(i)) for i in range(50)]
    written += [scored(str(i), float(i), guards={"a": 60.0 - i, "b": 60.0}) for i in range(50)]
    found, calls = state(*PARENTS, *written), 0
    references = SearchState.references

    def counted(self: SearchState) -> dict[str, str]:
        nonlocal calls
        calls += 1
        return references(self)

    monkeypatch.setattr(SearchState, "references", counted)
    assert found.best() == 12.0, "60 - 12 = 48, just the 2 points of 50 that may be lost"
    assert calls == 1
    assert min(found.evidence(str(i)) or (9.0, 0.0) for i in (12, 13)) == (0.0, 12.0)


def test_minibatch_scores_are_separate_from_the_full_split() -> None:
    found = state(
        asked("0", minibatch=1), asked("1", minibatch=1), scored("0", 7.0, minibatch=1, guards={"a": 1.0, "b": 1.0})
    )
    assert (found.done, found.sampled, found.cards) == (set(), {("0", 1)}, {})
    assert sorted(found.finished) == ["0"]
    assert found.any_scored
    assert found.best() is None  # nothing is reported yet
    reason = {"candidate": "1", "split": "search", "minibatch": 1, "stage": "score", "reason": "not finite"}
    events = [asked("0", minibatch=1), asked("1", minibatch=1), scored("0", 7.0, minibatch=1), ("failed", reason)]
    events.append(told(("0", 6.5, [0.0, 2.0]), ("1", None, [])))
    found = state(*PARENTS, *events)
    assert found.sampled == {("0", 1), ("1", 1)}
    assert ("1", "search") not in found.done
    assert found.evidence("0") == (2.0, 6.5)
    assert found.evidence("1") is None
    found = state(*PARENTS, *events, scored("0", 6.0, guards={"a": 50.0, "b": 50.0}))
    assert found.evidence("0") == (0.0, 6.0)  # the full split takes precedence over a minibatch
    assert found.as_reported("0") == (2.0, 6.5)


def test_an_equal_recipe_is_a_duplicate_only_on_the_same_minibatch() -> None:
    found = state(
        asked("0", minibatch=0, recipe_id="r"),
        asked("1", minibatch=1, recipe_id="r"),
        asked("2", minibatch=1, recipe_id="r"),
        asked("3", minibatch=2, recipe_id="r", gradient=True),  # never a duplicate
    )
    assert found.first_with == {("r", Evaluation(0)): "0", ("r", Evaluation(1)): "1"}
