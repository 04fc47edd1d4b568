"""Budgets that are used up or overrun: what a run says, and that no time left is negative."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Progress, Silent
from evosearch.search.state import SearchState
from evosearch.service.overrun import items_taken, overrun, used_up
from evosearch.service.run import run
from evosearch.setup.prepare import prepare
from evosearch.spec.spec import load_spec

World = Callable[..., Path]
RANDOM = {"name": "random", "population": 6}


class Listener(Silent):
    """Watcher that keeps notes and progress, and can interrupt the search."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.notes, self.seen, self._stop_at = list[str](), list[Progress](), stop_at

    def update(self, progress: Progress) -> None:
        self.seen.append(progress)
        if progress.stage == "search" and progress.done == self._stop_at:
            raise KeyboardInterrupt

    def note(self, text: str) -> None:
        self.notes.append(text)


def test_a_lowered_budget_is_explained(world: World) -> None:
    run(world(optimizer=RANDOM), Silent())
    listener = Listener()
    run(world(optimizer=RANDOM, budget={"candidates": 6}), listener)
    text = "18 candidates are recorded, more than budget.candidates, which is 6: no more candidates are proposed"
    assert text in listener.notes
    listener = Listener()
    run(world(optimizer=RANDOM, budget={"items": 100}), listener)
    assert (
        "288 item evaluations are recorded, more than budget.items, which is 100: no more candidates are proposed"
        in (listener.notes)
    )


def test_a_budget_that_is_kept_is_not_explained(world: World) -> None:
    listener = Listener()
    run(world(optimizer=RANDOM, budget={"candidates": 6, "items": 96, "hours": 10}), listener)
    assert not [text for text in listener.notes if "budget." in text]


def test_time_left_is_never_negative(world: World) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(world(optimizer=RANDOM), Listener(stop_at=9))
    listener = Listener()
    run(world(optimizer=RANDOM, budget={"candidates": 2}), listener)  # the pending ones are still scored
    seen = [progress for progress in listener.seen if progress.stage == "search"]
    assert max(progress.done for progress in seen) > 2
    assert any(progress.seconds_left is not None for progress in seen)
    assert all(progress.seconds_left is None or progress.seconds_left >= 0.0 for progress in seen)


@pytest.mark.parametrize(
    ("hours", "seconds", "said"), [(1.0, 3900.0, True), (1.0, 3600.5, False), (2.0, 3900.0, False)]
)
def test_more_hours_than_the_budgets_are_explained(hours: float, seconds: float, said: bool, world: World) -> None:
    prepared = prepare(load_spec(world(optimizer=RANDOM, budget={"hours": hours})), Silent())
    text = overrun(prepared, SearchState(seconds_before=seconds))
    assert (text is not None) is said
    if text is not None:
        assert text.startswith("the search took 1 h 5 min, and budget.hours is 1 h 0 min: it ends the proposals")


def test_hours_that_are_used_up_are_said_in_minutes(world: World) -> None:
    prepared = prepare(load_spec(world(optimizer=RANDOM, budget={"hours": 0.5})), Silent())
    (text,) = used_up(prepared, SearchState(seconds_before=2400.0))
    assert (
        text == "40 min 0 s are recorded, more than budget.hours, which is 30 min 0 s: no more candidates are proposed"
    )


@pytest.mark.parametrize("optimizer", [RANDOM, {"name": "gradient", "population": 1, "batch": 4}])
def test_items_are_counted_as_the_budget_counts_them(optimizer: dict[str, Any], world: World) -> None:
    """A budget of items ends a search at the last candidate or step that fits."""
    path = world(optimizer=optimizer, budget={"items": 300})
    report = run(path, Silent())
    prepared = prepare(load_spec(path), Silent())
    with Ledger.open(prepared.spec.run_dir.ledger, read_only=True) as ledger:
        state = SearchState.from_events(ledger.events(report.search_id))
    assert report.stopped == "items"
    assert 300 - 3 * 16 < items_taken(prepared, state) <= 300
