"""Node faults: a node is lost with its jobs; a node joins during the search."""

from benchmarks._accidents.record import examine
from benchmarks._accidents.stage import ScenarioResult, Stage, conclude
from benchmarks._cluster_proof.evidence import of_type
from benchmarks._light_workers.driver import SEARCH


def node_removed(stage: Stage) -> ScenarioResult:
    """Kill a node immediately, as in a power failure."""
    nodes = stage.up(first=2, second=2)
    stage.drive(90, 0.2)
    stage.until(lambda: len(_of(stage, nodes.pids("second"))) == 2, "used by both workers of the second node")
    stage.until_scored(20)
    nodes.lose("second")
    stage.finish()
    record = examine(stage.ledger, SEARCH, stage.candidates)
    return conclude("one of 2 nodes was lost, with the jobs of its 2 workers", record, "its node was lost: ", least=2)


def node_added(stage: Stage) -> ScenarioResult:
    """Add a node to the cluster of a search that uses all available workers."""
    nodes = stage.up(first=2)
    stage.drive(80, 0.3)
    stage.until_scored(15)
    before = stage.scored()
    seen: set[int] = set()

    def used() -> bool:
        seen.update(nodes.pids("second"))
        return len(_of(stage, seen)) == 2

    with nodes.suspended():
        nodes.add("second", 2)
        stage.until(used, "used by both workers of the second node")
    stage.finish()
    record = examine(stage.ledger, SEARCH, stage.candidates)
    moved = [one for one in of_type(stage.events(), "scored") if _pid(one["worker"]) in seen]
    happened = f"a second node joined after {before} candidates and scored {len(moved)} of the others"
    return conclude(happened, record, reasons=["none expected"])


def _of(stage: Stage, pids: set[int]) -> set[int]:
    """Subset of `pids` whose processes have scored a candidate."""
    return {_pid(one["worker"]) for one in of_type(stage.events(), "scored")} & pids


def _pid(worker: str) -> int:
    return int(worker.rpartition(":")[2])
