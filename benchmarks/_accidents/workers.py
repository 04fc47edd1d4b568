"""Worker faults: a worker is killed, hangs or runs out of memory; a candidate kills every worker."""

import random

import psutil

from benchmarks._accidents.nodes import lose_worker
from benchmarks._accidents.record import examine
from benchmarks._accidents.stage import ScenarioResult, Stage, UnavailableError, conclude
from benchmarks._light_workers.driver import SEARCH
from benchmarks._light_workers.light import SWELL

HANGING = ("20@search", "30@search")
GIB, MIB = 2**30, 2**20
SHARE = 0.25  # maximum share of the available memory for the growing worker
SWELL_MIB, LEAST_MIB = 2560, 1024  # limits of its memory; with less, the scenario is skipped
MARGIN = 0.6  # share of its memory, above current use, at which Ray's memory monitor kills it
MONITOR_MS = 100


def worker_killed(stage: Stage) -> ScenarioResult:
    """Kill a worker during a job, three times."""
    nodes = stage.up(first=2, second=2)
    stage.drive(90, 0.2)
    for scored in (15, 35, 55):
        stage.until_scored(scored)
        stage.until(lambda: bool(nodes.workers()), "given a worker")
        lose_worker(random.choice(nodes.workers()))
    stage.finish()
    record = examine(stage.ledger, SEARCH, stage.candidates)
    return conclude("one of 4 workers was killed during a job, 3 times", record, "the worker died: ", least=3)


def poison(stage: Stage) -> ScenarioResult:
    """Score a candidate that kills every worker that scores it."""
    stage.up(head=2)
    stage.drive(50, 0.1, acts={"20@search": "die"})
    stage.finish()
    record = examine(stage.ledger, SEARCH, stage.candidates)
    quarantined = {"20": "quarantined: 2 workers were lost while scoring it; the last: the worker died: "}
    return conclude("candidate 20 kills its worker every time", record, "the worker died: ", quarantined)


def hang(stage: Stage) -> ScenarioResult:
    """Let workers hang; the timeout follows from the durations of other jobs."""
    stage.up(head=4)
    timeouts = {"first": 120.0, "floor": 8.0, "factor": 5.0}
    stage.drive(60, 0.1, acts=dict.fromkeys(HANGING, "hang once"), timeouts=timeouts)
    stage.finish()
    record = examine(stage.ledger, SEARCH, stage.candidates)
    workers = {job: {pid for begun, pid in stage.begun() if begun == job} for job in HANGING}
    alone = [job for job in HANGING if len(workers[job]) < 2]
    more = [f"{job} was not retried on another worker" for job in alone]
    happened = "2 of 4 workers hung; the timeout is 8 s or 5 times the slowest job"
    return conclude(happened, record, r"no answer after \d+ s \(typical: \S+ s\)", more=more, least=2)


def memory(stage: Stage) -> ScenarioResult:
    """Let a worker allocate memory until Ray's memory monitor kills it; the other node has no monitor."""
    nodes = stage.up(unwatched=1)
    stage.drive(60, 0.2)
    stage.until_scored(10)
    use = psutil.virtual_memory()
    most = min(SWELL_MIB, int(SHARE * use.available / MIB))
    if most < LEAST_MIB:
        raise UnavailableError(
            f"{use.available / GIB:.1f} GiB of memory are available, {LEAST_MIB / SHARE / 1024:.0f} GiB are needed"
        )
    threshold = (use.total - use.available + MARGIN * most * MIB) / use.total
    order = stage.folder / "swell"
    order.write_text(str(most))
    settings = {
        "RAY_memory_usage_threshold": f"{threshold:.4f}",
        "RAY_memory_monitor_refresh_ms": str(MONITOR_MS),
        SWELL: str(order),
    }
    with nodes.suspended():
        nodes.add("watched", 1, **settings)
        stage.until(lambda: not order.exists(), "joined by a growing worker")
    stage.finish()
    record = examine(stage.ledger, SEARCH, stage.candidates)
    happened = (
        f"a worker allocated up to {most / 1024:.1f} GiB (at most a quarter of the available memory); "
        f"threshold of Ray's memory monitor: {100 * threshold:.0f}% of {use.total / GIB:.0f} GiB"
    )
    return conclude(happened, record, "the worker was killed: its node ran out of memory ")
