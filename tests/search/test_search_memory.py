"""A long search does not slow down and hardly grows: the cost of an outcome is constant."""

import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from benchmarks._simulated.searches import SEARCH, heavy_tailed, score, search
from benchmarks._simulated.workers import SimulatedWorkers
from benchmarks._simulated.world import World
from evosearch.search.budget import Budget
from evosearch.search.ledger.ledger import PAGE, Ledger
from evosearch.search.recorder import Recorder
from evosearch.search.space.dimensions import Evaluation
from evosearch.search.state import SearchState

pytestmark = pytest.mark.usefixtures("no_power_cuts")
WORLD = World(models=2, layers=18, items=10)  # 80 dimensions
LARGE = World()  # 300
OPTIONS = {"name": "random", "population": 10, "seed": 1}


def run(folder: Path, world: World, candidates: int, asynchronous: bool = True) -> Recorder:
    workers = SimulatedWorkers(4, heavy_tailed(), score(world), lambda: 0.0)
    options = OPTIONS | {"asynchronous": asynchronous}
    return search(folder, world, workers, options, Budget(candidates=candidates))[1]


def complete_state(recorder: Recorder) -> SearchState:
    """The complete state, as readers of a finished search have it."""
    return SearchState.from_events(recorder.ledger.events(SEARCH))


def test_genomes_and_recipes_stay_in_the_ledger(tmp_path: Path) -> None:
    recorder = run(tmp_path, WORLD, 30)
    slim, full = recorder.state, complete_state(recorder)
    assert full.proposal("7").genome.keys() == {dimension.name for dimension in WORLD.space.dimensions}
    assert slim.candidates["7"] == full.candidates["7"]
    assert slim.proposal("7") == full.proposal("7")
    assert slim.recipe("7") == full.recipe("7") == full.proposal("7").recipe
    assert slim.proposed == full.proposed == 30


def test_running_counts_equal_counts_over_all_events(tmp_path: Path) -> None:
    """Compare the running sums with sums over all events."""
    world = World(models=2, per=None, items=10, failing=5)
    recorder = run(tmp_path, world, 60)
    kept, full = recorder.state, complete_state(recorder)
    failed = {(failure.candidate, "search") for failure in full.failed}
    assert failed
    assert kept.done == full.cards.keys() | failed
    assert kept.finished == {name for name, _ in kept.done}
    assert kept.groups == 60
    assert kept.distinct[Evaluation()] == sum(one.duplicate_of is None for one in full.candidates.values())
    values = [one.fitness.value for one in full.reported.values() if one.fitness]
    assert kept.best() == full.best() == max(values)
    assert kept.best_reported == (0.0, -max(values))
    assert all(kept.has_failed(name) == ((name, "search") in failed) for name in full.candidates)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["synchronous", "asynchronous"])
def test_an_outcome_takes_constant_time(asynchronous: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Count how often candidates are evaluated: a few times each, not once per outcome."""
    looks = 0
    evidence = SearchState._evidence

    def counted(self: SearchState, *args: Any) -> Any:
        nonlocal looks
        looks += 1
        return evidence(self, *args)

    monkeypatch.setattr(SearchState, "_evidence", counted)
    run(tmp_path, World(models=2, per=None, items=10), 150, asynchronous)
    assert 150 <= looks <= 3 * 150


def test_a_candidate_of_300_dimensions_leaves_a_few_kilobytes(tmp_path: Path) -> None:
    """Its genome and recipe alone are more than 50 kB; only its results are kept."""
    tracemalloc.start()
    try:
        sizes = []
        for candidates in (20, 60):  # the second resumes the first with a fresh state
            recorder = run(tmp_path, LARGE, candidates)
            before = tracemalloc.get_traced_memory()[0]
            state = recorder.state
            recorder.state = SearchState()
            del state
            sizes.append(before - tracemalloc.get_traced_memory()[0])
            recorder.ledger.close()
        payloads = tracemalloc.get_traced_memory()[0]
        with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}", read_only=True) as ledger:
            kept = [event.payload for event in ledger.stream(SEARCH) if event.type == "asked"]
        payloads = tracemalloc.get_traced_memory()[0] - payloads
    finally:
        tracemalloc.stop()
    assert len(kept) == 60
    assert (sizes[1] - sizes[0]) / 40 < 10_000
    assert payloads / 60 > 50_000


def test_a_ledger_is_read_page_by_page(tmp_path: Path) -> None:
    recorder = run(tmp_path, World(models=2, per=None, items=10), 40)
    ledger = recorder.ledger
    every = ledger.events(SEARCH)
    assert len(every) > 2 * PAGE - 10
    assert list(ledger.stream(SEARCH)) == every
    assert list(ledger.stream(SEARCH, after=70)) == ledger.events(SEARCH, after=70)
    assert ledger.event(SEARCH, 17) == every[16]
    assert list(ledger.stream("another")) == []
