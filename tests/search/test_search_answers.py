"""Answers of an optimizer, its recommendations, whose session ends before they are scored."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from benchmarks._simulated.searches import SEARCH, score, search
from benchmarks._simulated.workers import SimulatedWorkers
from benchmarks._simulated.world import World
from evosearch.search.budget import Budget
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.protocols import Job
from evosearch.search.space.dimensions import Genome, Observation

pytestmark = pytest.mark.usefixtures("no_power_cuts")
SMALL = World(models=2, per=None, densities=True, items=10)
GENOMES = [{name: value * (1.0 - 0.02 * index) for name, value in SMALL.space.initial().items()} for index in range(8)]


class Listed:
    """Proposes genomes in order, and recommends one that it will propose later."""

    population = 2

    def __init__(self) -> None:
        self._left = list(GENOMES)

    def ask(self, n: int) -> list[Genome]:
        asked, self._left = self._left[:n], self._left[n:]
        return [dict(genome) for genome in asked]

    def tell(self, observations: Sequence[Observation]) -> None:
        pass

    def stop_reason(self) -> str | None:
        return None

    def answers(self) -> list[Genome]:
        return [dict(GENOMES[5])]


class Killed(SimulatedWorkers):
    """Workers of a session that is killed when a candidate is submitted."""

    last = "4"

    def submit(self, job: Job) -> None:
        if job.id == f"{self.last}@search":
            raise KeyboardInterrupt
        super().submit(job)


def run(folder: Path, kind: type[SimulatedWorkers], candidates: int, asynchronous: bool) -> str:
    workers = kind(2, lambda job: 1.0, score(SMALL), lambda: 0.0)
    config = {"name": "random", "asynchronous": asynchronous}
    reason, recorder = search(
        folder, SMALL, workers, config, Budget(candidates=candidates), lambda config, world, start: Listed()
    )
    recorder.ledger.close()
    return reason


@pytest.mark.timeout(60)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["generations", "asynchronous"])
def test_a_candidate_that_repeats_an_unscored_answer_gets_its_score(asynchronous: bool, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Killed, 4, asynchronous)
    assert run(tmp_path, SimulatedWorkers, 8, asynchronous) == "candidates"
    with Ledger.open(f"sqlite:///{tmp_path / 'ledger.db'}", read_only=True) as ledger:
        events = ledger.events(SEARCH)

    def payloads(kind: str) -> list[dict[str, Any]]:
        return [event.payload for event in events if event.type == kind]

    assert [payload["candidate"] for payload in payloads("answered")][:1] == ["4"]
    (repeated,) = [payload for payload in payloads("asked") if payload["duplicate_of"] == "4"]
    (card,) = [payload for payload in payloads("scored") if payload["candidate"] == "4"]
    told = {one["candidate"]: one for payload in payloads("told") for one in payload["observations"]}
    assert told[repeated["candidate"]]["value"] == card["fitness"]["value"]
    assert all(one["state"] == "scored" for one in told.values())
    assert len(told) == 8
