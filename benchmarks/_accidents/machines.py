"""Faults of nodes: one is lost with its jobs; one comes while the search runs."""

from benchmarks._accidents.record import examine
from benchmarks._accidents.stage import Finding, Stage, conclude
from benchmarks._cluster_proof.evidence import of_type
from benchmarks._light_workers.driver import SEARCH


def node_removed(stage: Stage) -> Finding:
    """A node is gone at once, as when it loses power."""
    nodes = stage.up(first=2, second=2)
    stage.drive(90, 0.2)
    stage.until(lambda: len(_of(stage, nodes.pids("second"))) == 2, "both workers of the second node used")
    stage.until_scored(20)
    nodes.lose("second")
    stage.finish()
    record = examine(stage.ledger, SEARCH, stage.candidates)
    return conclude("one node of two was lost, with the jobs of its 2 workers", record, "its node was lost: ", least=2)


def node_added(stage: Stage) -> Finding:
    """A search that takes what there is gets a second node, and uses it."""
    nodes = stage.up(first=2)
    stage.drive(80, 0.3)
    stage.until_scored(15)
    before = stage.scored()
    seen: set[int] = set()

    def used() -> bool:
        seen.update(nodes.pids("second"))
        return len(_of(stage, seen)) == 2

    with nodes.standing_still():
        nodes.add("second", 2)
        stage.until(used, "both workers of the second node used")
    stage.finish()
    record = examine(stage.ledger, SEARCH, stage.candidates)
    there = [one for one in of_type(stage.events(), "scored") if _pid(one["worker"]) in seen]
    happened = f"a second node came after {before} candidates; {len(there)} of the others were scored there"
    return conclude(happened, record, reasons=["none to be told"])


def _of(stage: Stage, pids: set[int]) -> set[int]:
    """Those of some processes that have scored candidates."""
    return {_pid(one["worker"]) for one in of_type(stage.events(), "scored")} & pids


def _pid(worker: str) -> int:
    return int(worker.rpartition(":")[2])
