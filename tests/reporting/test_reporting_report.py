"""Candidate counts in the report of a run."""

from typing import Any

from evosearch.reporting.report import CandidateCounts, candidate_counts
from evosearch.search.ledger.events import Event
from evosearch.search.state import SearchState


def state_of(proposed: int, *outcomes: tuple[str, dict[str, Any]]) -> SearchState:
    payloads = [{"candidate": str(index), "recipe_id": str(index), "group": 0} for index in range(proposed)]
    events = [*(("asked", payload) for payload in payloads), *outcomes]
    return SearchState.from_events(Event(seq, seq, kind, payload) for seq, (kind, payload) in enumerate(events, 1))


def scored(name: str, split: str = "search", **more: Any) -> tuple[str, dict[str, Any]]:
    return "scored", {
        "candidate": name,
        "split": split,
        "score": 1.0,
        "fitness": {"value": 1.0, "stderr": 0.0, "n": 4},
    } | more


def failed(name: str, split: str = "search", **more: Any) -> tuple[str, dict[str, Any]]:
    return "failed", {"candidate": name, "split": split, "stage": "score", "reason": "lost"} | more


def test_a_finalist_that_fails_later_counts_as_scored() -> None:
    state = state_of(3, scored("0"), scored("1"), failed("2"), failed("0", "validation"), failed("base"))
    assert candidate_counts(state, 1) == CandidateCounts(proposed=3, scored=2, failed=1, resumed=1)


def test_a_candidate_that_fails_on_the_full_split_counts_as_scored_on_its_minibatch() -> None:
    state = state_of(3, scored("0", minibatch=0), scored("1", minibatch=0), failed("2", minibatch=0), failed("0"))
    assert candidate_counts(state, 0) == CandidateCounts(proposed=3, scored=2, failed=1, resumed=0)
