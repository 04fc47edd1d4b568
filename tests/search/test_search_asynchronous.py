"""The asynchronous loop: scheduling, what is recorded, and that kills lose nothing."""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks._simulated.searches import SEARCH, heavy_tailed, score, search
from benchmarks._simulated.workers import SimulatedWorkers, utilization
from benchmarks._simulated.world import World
from evosearch.errors import SearchError
from evosearch.search.asynchronous import SLOTS_PER_SPARE
from evosearch.search.budget import Budget
from evosearch.search.ledger.events import Event
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.optimizer_config import OptimizerConfig, create
from evosearch.search.optimizers import registry
from evosearch.search.protocols import Job, Outcome
from evosearch.search.replay import replay
from evosearch.search.space.dimensions import Evaluation

pytestmark = pytest.mark.usefixtures("no_power_cuts")
SMALL = World(models=2, per=None, densities=True, items=10)
ASYNCHRONOUS = [name for name in registry.names() if registry.load(name).asynchronous]
QUICK = [name for name in ASYNCHRONOUS if name not in ("gp", "grid", "greedy_soup")]  # fast enough for many candidates


def still() -> float:
    """A fake clock, so that runs do not depend on the machine's load."""
    return 0.0


def workers(world: World, count: int, seed: int = 0) -> SimulatedWorkers:
    return SimulatedWorkers(count, heavy_tailed(seed), score(world), still)


def config(name: str = "random", **more: Any) -> dict[str, Any]:
    return {"name": name, "seed": 3, "asynchronous": True, **more}


def run(folder: Path, world: World, executor: Any, budget: int = 60, **options: Any) -> list[Event]:
    """Run a search to its end and return its events."""
    reason, recorder = search(folder, world, executor, config(**options), Budget(candidates=budget))
    assert reason == "candidates"
    events = recorder.ledger.events(SEARCH)
    recorder.ledger.close()
    return events


def payloads(events: Sequence[Event], kind: str) -> list[dict[str, Any]]:
    return [event.payload for event in events if event.type == kind]


def told(events: Sequence[Event]) -> list[dict[str, Any]]:
    return [one for payload in payloads(events, "told") for one in payload["observations"]]


def complete(events: Sequence[Event], count: int) -> None:
    """Check that every candidate is proposed and reported once, reported after its score, and never scored twice."""
    names = [payload["candidate"] for payload in payloads(events, "asked")]
    assert names == [str(index) for index in range(count)]
    assert Counter(one["candidate"] for one in told(events)) == Counter(names)
    answers = {payload["candidate"] for payload in payloads(events, "answered")}
    found = (*payloads(events, "scored"), *payloads(events, "failed"))
    outcomes = Counter(p["candidate"] for p in found if p["candidate"] not in answers)
    new = [p["candidate"] for p in payloads(events, "asked") if p["duplicate_of"] is None]
    assert outcomes == Counter(new)
    at: dict[str, dict[str, int]] = {"asked": {}, "outcome": {}, "told": {}}
    values: dict[str, float | None] = {}
    first = {p["candidate"]: p["duplicate_of"] or p["candidate"] for p in payloads(events, "asked")}
    for event in events:
        if event.type in ("asked", "scored", "failed") and event.payload["candidate"] not in answers:
            at["asked" if event.type == "asked" else "outcome"][event.payload["candidate"]] = event.seq
            if event.type != "asked":
                fitness = event.payload.get("fitness")
                values[event.payload["candidate"]] = fitness["value"] if fitness else None
        elif event.type == "told":
            (one,) = event.payload["observations"]
            at["told"][one["candidate"]] = event.seq
            assert one["value"] == values[first[one["candidate"]]], "reported values are the scored ones"
    for name in names:
        assert at["asked"][first[name]] < at["outcome"][first[name]] < at["told"][name]


def replayed(events: Sequence[Event], world: World, **options: Any) -> int:
    """Replay a record with a fresh optimizer and return the number of pending candidates."""
    start = world.space.initial()
    optimizer = create(OptimizerConfig(start="init", **config(**options)), world.space.dimensions, start)
    return len(replay(optimizer, events).pending)  # raises if an ask differs


@pytest.mark.parametrize("name", QUICK)
def test_the_record_is_complete_and_replays_for_any_order_of_results(name: str, tmp_path: Path) -> None:
    events = run(tmp_path, SMALL, workers(SMALL, 8), name=name)
    complete(events, 60)
    assert replayed(events, SMALL, name=name) == 0
    order = [int(one["candidate"]) for one in told(events)]
    assert order != sorted(order), "stragglers do not block others"
    asked = [event.payload["group"] for event in events if event.type == "asked"]
    assert asked == list(range(60)), "each is a group of its own"


def test_a_straggler_does_not_block_others(tmp_path: Path) -> None:
    """One candidate takes as long as all others together: it is reported last."""
    long = SimulatedWorkers(4, lambda job: 1e4 if job.id.startswith("2@") else 10.0, score(SMALL), still)
    events = run(tmp_path, SMALL, long)
    complete(events, 60)
    assert told(events)[-1]["candidate"] == "2"
    assert utilization(long) == pytest.approx(1.0)


def test_a_few_jobs_are_queued_before_a_worker_is_free(tmp_path: Path) -> None:
    executor, most = workers(SMALL, 16), 0
    submit = executor.submit

    def counted(job: Job) -> None:
        nonlocal most
        submit(job)
        most = max(most, len(executor._queue))

    executor.submit = counted  # type: ignore[method-assign]
    run(tmp_path, SMALL, executor, budget=100)
    assert most == 16 // SLOTS_PER_SPARE
    assert utilization(executor) == pytest.approx(1.0)


def test_slots_that_come_later_are_filled(tmp_path: Path) -> None:
    """No worker at first, then one, then eight."""
    executor = workers(SMALL, 8)
    known = iter([0, 0, 1, *[1] * 20])
    kind = type("Growing", (SimulatedWorkers,), {"slots": property(lambda self: next(known, 8), lambda self, n: None)})
    executor.__class__ = kind
    events = run(tmp_path, SMALL, executor)
    complete(events, 60)
    assert len({span.worker for span in executor.spans}) == 8


def test_duplicates_are_answered_from_the_ledger_when_the_first_is_done(tmp_path: Path) -> None:
    """Nine recipes and sixteen workers: most candidates duplicate running or finished ones."""
    world = World(models=2, per=None, densities=False, choices=(0.1, 0.4, 0.7), items=10)
    executor = workers(world, 16)
    events = run(tmp_path, world, executor, budget=80)
    complete(events, 80)
    asked = payloads(events, "asked")
    assert len(executor.spans) == len({payload["recipe_id"] for payload in asked}) == 9
    assert replayed(events, world) == 0
    assert sum(payload["duplicate_of"] is not None for payload in asked) == 71


def test_a_budget_of_items_ends_if_all_candidates_are_duplicates(tmp_path: Path) -> None:
    world = World(models=1, per=None, densities=False, choices=(0.1, 0.4), items=10)
    reason, recorder = search(tmp_path, world, workers(world, 4), config(), Budget(items=1000))
    assert reason == "nothing new: 256 duplicates in a row"
    again, _ = search(tmp_path, world, workers(world, 4), config(), Budget(items=1000))
    assert again == reason
    assert recorder.state.distinct == {Evaluation(): 2}


@pytest.mark.parametrize("name", QUICK)
def test_failures_are_reported(name: str, tmp_path: Path) -> None:
    world = World(models=2, per=None, items=10, failing=4)
    events = run(tmp_path, world, workers(world, 5), name=name)
    complete(events, 60)
    assert 5 < sum(one["state"] == "failed" for one in told(events)) < 25
    assert replayed(events, world, name=name) == 0


def test_it_gives_up_if_all_candidates_fail(tmp_path: Path) -> None:
    world = World(models=2, per=None, items=10, failing=1)
    with pytest.raises(
        SearchError, match=r"all 8 candidates failed; the last failure was \d+: score: a result is not finite"
    ):
        run(tmp_path, world, workers(world, 3))


# --- kill -9, at random moments ---------------------------------------------------------------------------------------


class Killed(BaseException):
    """Simulates SIGKILL: the program does not catch it."""


def dying(append: Callable[..., Any], commit: int, before: bool) -> Callable[..., Any]:
    """`Ledger.append` that raises at its n-th commit, before or after it."""
    count = itertools.count(1)

    def appending(self: Ledger, *args: Any, **kwargs: Any) -> Any:
        now = next(count)
        if now == commit and before:
            raise Killed
        events = append(self, *args, **kwargs)
        if now == commit:
            raise Killed
        return events

    return appending


@pytest.mark.parametrize("name", QUICK)
def test_killed_at_random_moments_nothing_is_lost_and_nothing_scored_twice(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run a search with kills until it is done; after each the record replays, and earlier events stay."""
    world = World(models=2, per=None, items=10, failing=9)
    draw, append = random.Random(7), Ledger.append
    kept: list[Event] = []
    kills = 0
    while True:
        monkeypatch.setattr(Ledger, "append", dying(append, draw.randint(3, 20), draw.random() < 0.5))
        try:  # workers die too: their candidates are scored again, in another order
            events = run(tmp_path, world, workers(world, 6, seed=kills), budget=40, name=name)
            break
        except Killed:
            kills += 1
        with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}", read_only=True) as ledger:
            events = ledger.events(SEARCH)
        assert events[: len(kept)] == kept
        kept = events
        left = replayed(events, world, name=name)
        assert left == len(payloads(events, "asked")) - len(told(events))
    assert kills >= 5
    assert events[: len(kept)] == kept
    complete(events, 40)
    assert replayed(events, world, name=name) == 0


class Recorded:
    """Workers with outcomes in random order, several at a time, without a clock."""

    def __init__(self, world: World, slots: int, seed: int) -> None:
        self.slots, self._score, self._draw = slots, score(world), random.Random(seed)
        self._queue: list[Job] = []

    def submit(self, job: Job) -> None:
        self._queue.append(job)

    def wait(self, timeout_s: float) -> list[Outcome]:
        if not self._queue or (timeout_s == 0.0 and self._draw.random() < 0.5):
            return []
        some = self._draw.sample(self._queue[: self.slots], self._draw.randint(1, min(3, len(self._queue), self.slots)))
        self._queue = [job for job in self._queue if job not in some]
        return [Outcome(job, "w", card=self._score(job)) for job in some]

    def close(self) -> None: ...


@pytest.mark.parametrize("seed", range(4))
def test_any_interleaving_replays(seed: int, tmp_path: Path) -> None:
    events = run(tmp_path, SMALL, Recorded(SMALL, 3 + seed, seed), name=QUICK[seed % len(QUICK)])
    complete(events, 60)
    assert replayed(events, SMALL, name=QUICK[seed % len(QUICK)]) == 0
