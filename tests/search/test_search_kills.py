"""A synchronous search killed at random moments and resumed is the search that was never killed."""

import random
from pathlib import Path
from typing import Any

import pytest

from benchmarks._simulated.searches import SEARCH, heavy_tailed, score, search
from benchmarks._simulated.workers import SimulatedWorkers
from benchmarks._simulated.world import World
from evosearch.search.budget import Budget
from evosearch.search.ledger.ledger import Ledger

pytestmark = pytest.mark.usefixtures("no_power_cuts")
WORLD = World(models=2, per=None, items=10, failing=6)
COMMITS = 35  # commits of the search below: start, four asks, four tells, and outcomes of 24 candidates, three at once
DRAW = random.Random(2031)
MOMENTS = sorted((DRAW.randint(2, COMMITS - 1), DRAW.random() < 0.5) for _ in range(20))


class Killed(BaseException):
    """Simulates SIGKILL: the program does not catch it."""


def run(folder: Path, seed: int = 0) -> None:
    """Run the search or the rest of it; `seed` decides the order in which workers finish."""
    workers = SimulatedWorkers(3, heavy_tailed(seed), score(WORLD), lambda: 0.0)
    options = {"name": "cma_es", "population": 6, "seed": 1}
    reason, recorder = search(folder, WORLD, workers, options, Budget(candidates=24))
    recorder.ledger.close()
    assert reason == "candidates"


def record(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Asks, sorted scores and tells of a search, without times and workers."""
    with Ledger.open(f"sqlite:///{folder / 'ledger.db'}", read_only=True) as ledger:
        events = ledger.events(SEARCH)
        columns = {
            event.payload["candidate"]: ledger.columns(SEARCH, event.payload["candidate"], "search")
            for event in events
            if event.type == "scored"
        }
    found: dict[str, list[dict[str, Any]]] = {kind: [] for kind in ("asked", "scored", "failed", "told")}
    for event in events:
        if event.type in found:
            found[event.type].append({key: value for key, value in event.payload.items() if key != "worker"})
    for payload in found["scored"]:
        columns_of = columns[payload["candidate"]]
        payload["columns"] = {task: {k: v.tolist() for k, v in own.items()} for task, own in columns_of.items()}
    for kind in ("scored", "failed"):
        found[kind].sort(key=lambda payload: int(payload["candidate"]))
    return found


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("whole")
    run(folder)
    found = record(folder)
    assert [len(found[kind]) for kind in ("asked", "told")] == [24, 4]
    assert len(found["failed"]) >= 2
    return found


@pytest.mark.parametrize(("commit", "before"), MOMENTS)
def test_killed_at_a_random_moment_it_resumes_exactly(
    commit: int,
    before: bool,
    uninterrupted: dict[str, list[dict[str, Any]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    append, count = Ledger.append, 0

    def dying(self: Ledger, *args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == commit and before:
            raise Killed
        events = append(self, *args, **kwargs)
        if count == commit:
            raise Killed
        return events

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "append", dying)
        with pytest.raises(Killed):
            run(tmp_path)
    run(tmp_path, seed=1)  # other workers, in another order
    assert record(tmp_path) == uninterrupted
