"""What a run's report counts."""

from typing import Any

from evosearch.reporting.report import candidates_of
from evosearch.search.ledger.events import Event
from evosearch.search.state import SearchState


def state_of(asked: int, *outcomes: tuple[str, dict[str, Any]]) -> SearchState:
    payloads = [
        {"candidate": str(index), "recipe_id": str(index), "group": 0} for index in range(asked)
    ]
    events = [*(("asked", payload) for payload in payloads), *outcomes]
    return SearchState.from_events(Event(seq, seq, kind, payload) for seq, (kind, payload) in enumerate(events, 1))


def scored(name: str, split: str = "search", **more: Any) -> tuple[str, dict[str, Any]]:
    return "scored", {"candidate": name, "split": split, "score": 1.0, "fitness": {"value": 1.0, "stderr": 0.0, "n": 4}} | more


def failed(name: str, split: str = "search", **more: Any) -> tuple[str, dict[str, Any]]:
    return "failed", {"candidate": name, "split": split, "stage": "score", "reason": "lost"} | more


def test_a_finalist_that_fails_later_was_scored_all_the_same() -> None:
    state = state_of(3, scored("0"), scored("1"), failed("2"), failed("0", "validation"), failed("base"))
    assert candidates_of(state, 1) == {"asked": 3, "scored": 2, "failed": 1, "resumed": 1}


def test_who_fails_on_all_items_was_scored_on_a_part_of_them() -> None:
    state = state_of(3, scored("0", part=0), scored("1", part=0), failed("2", part=0), failed("0"))
    assert candidates_of(state, 0) == {"asked": 3, "scored": 2, "failed": 1, "resumed": 0}
