"""The search continues after candidates with non-finite outputs, and after a worker is killed while it scores."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from evosearch.reporting.report import CandidateCounts
from evosearch.search.ledger.events import Event
from evosearch.search.progress import Progress, Silent
from evosearch.service.run import run

World = Callable[..., Path]
Events = Callable[[Path], list[Event]]


def test_non_finite_outputs_are_failures(world: World, events: Events) -> None:
    """Weights of 1e12 are finite, but the model's outputs are not.

    `tests/search/test_search_optimizers.py` tests for each optimizer that a failure ranks below every score.
    """
    hole = {"low": 0.1, "high": 1e25, "log": True, "per": "group", "groups": 2, "ends": "shared"}
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": "./base",
        "models": [{"model": f"./{name}", "parameters": {"weight": hole}} for name in ("expert1", "expert2")],
    }
    spec = world("blown", recipe=recipe, optimizer={"name": "random", "seed": 1}, budget={"candidates": 24})
    report = run(spec, Silent())
    recorded = events(spec)
    failed = {event.payload["candidate"]: event.payload for event in recorded if event.type == "failed"}
    scored = [event.payload for event in recorded if event.type == "scored"]
    assert report.candidates.proposed == 24
    assert report.candidates.failed == len(failed) >= 3
    assert report.candidates.scored == 24 - len(failed) >= 3
    assert {payload["stage"] for payload in failed.values()} == {"score"}
    assert all("not finite" in payload["reason"] for payload in failed.values())
    assert all("CandidateError" in payload["traceback"] for payload in failed.values())
    assert not failed.keys() & {payload["candidate"] for payload in scored}, "a failure has no score"
    reported = [entry for event in recorded if event.type == "told" for entry in event.payload["observations"]]
    assert len(reported) == 24
    for entry in reported:
        assert (entry["candidate"] in failed) == (entry["state"] == "failed") == (entry["value"] is None)
    assert report.best is not None
    assert report.best.candidate not in failed
    assert run(spec, Silent()).candidates == replace(report.candidates, resumed=24), "a failure is not retried"
    assert events(spec)[-1].type == "stopped"


@pytest.fixture
def _no_ray_left() -> Iterator[None]:
    before = dict(os.environ)
    yield
    import ray

    ray.shutdown()
    for name in os.environ.keys() - before.keys():  # set by the Ray executor
        del os.environ[name]


class Killer(Silent):
    """Watcher that kills the only worker once, while it scores a job."""

    def __init__(self, events: Callable[[], list[Event]]) -> None:
        self._events = events
        self.killed: int | None = None
        self.notes: list[str] = []

    def update(self, progress: Progress) -> None:
        if progress.stage != "search" or progress.done < 8 or self.killed is not None:
            return
        worker = next(e.payload["worker"] for e in reversed(self._events()) if e.type == "scored")
        self.killed = int(worker.rsplit(":", 1)[1])
        os.kill(self.killed, signal.SIGSTOP)  # it has just received its next job
        time.sleep(0.3)
        os.kill(self.killed, signal.SIGKILL)

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.mark.ray
@pytest.mark.usefixtures("_no_ray_left")
def test_no_score_is_lost_with_a_killed_worker(world: World, events: Events) -> None:
    """`tests/execution/test_execution_ray.py` tests the executor; this tests the ledger's events."""
    spec = world("killed", workers={"executor": "ray", "count": 1, "threads": 1, "gpus_per_worker": 0})
    killer = Killer(lambda: events(spec))
    report = run(spec, killer)
    recorded = events(spec)
    assert killer.killed is not None
    assert sum("scoring it again on another worker" in note for note in killer.notes) == 1
    (retried,) = [event.payload for event in recorded if event.type == "retried"]
    assert retried["stage"] == "worker"
    assert "died" in retried["reason"]
    assert report.candidates == CandidateCounts(18, 18, 0, 0)
    cards = [event.payload for event in recorded if event.type == "scored"]
    once = {(card["candidate"], card["split"]): card for card in cards}
    assert len(once) == len(cards)
    again = once[retried["candidate"], "search"]
    assert int(again["worker"].rsplit(":", 1)[1]) != killer.killed
    reported = {
        entry["candidate"]: entry["value"] for e in recorded if e.type == "told" for entry in e.payload["observations"]
    }
    asked = {event.payload["candidate"] for event in recorded if event.type == "asked"}
    assert reported == {name: once[name, "search"]["fitness"]["value"] for name in asked}
    local = world("killed", budget={"candidates": 18})
    assert run(local, Silent()).candidates == replace(report.candidates, resumed=18), "and the ledger replays exactly"
