"""Faults of workers: one is killed, one hangs, one takes too much memory, a candidate kills all that score it."""

import random

import psutil

from benchmarks._accidents.nodes import lose_worker
from benchmarks._accidents.record import examine
from benchmarks._accidents.stage import Finding, NotHere, Stage, conclude
from benchmarks._light_workers.driver import SEARCH
from benchmarks._light_workers.light import SWELL

HANGING = ("20@search", "30@search")
GIB, MIB = 2**30, 2**20
SHARE = 0.25  # of the memory that is available: what the worker that swells may take of it
SWELL_MIB, LEAST_MIB = 2560, 1024  # it takes so much at most, and it is not tried with less
MARGIN = 0.6  # of what it may take, above what is in use before: where the monitor steps in
MONITOR_MS = 100


def worker_killed(stage: Stage) -> Finding:
    """Three times a worker is killed while it scores."""
    nodes = stage.up(first=2, second=2)
    stage.drive(90, 0.2)
    for scored in (15, 35, 55):
        stage.until_scored(scored)
        stage.until(lambda: bool(nodes.workers()), "a worker there")
        lose_worker(random.choice(nodes.workers()))
    stage.finish()
    record = examine(stage.ledger, SEARCH, stage.candidates)
    return conclude("3 times one of 4 workers got SIGKILL with a job", record, "the worker died: ", least=3)


def poison(stage: Stage) -> Finding:
    """One candidate kills every worker that it is given to."""
    stage.up(head=2)
    stage.drive(50, 0.1, acts={"20@search": "die"})
    stage.finish()
    record = examine(stage.ledger, SEARCH, stage.candidates)
    quarantined = {"20": "quarantined: 2 workers were lost under it; the last: the worker died: "}
    return conclude("candidate 20 kills its worker, each time", record, "the worker died: ", quarantined)


def hang(stage: Stage) -> Finding:
    """A worker does not answer; how long is too long is known from the others' answers."""
    stage.up(head=4)
    patience = {"first": 120.0, "floor": 8.0, "factor": 5.0}
    stage.drive(60, 0.1, acts=dict.fromkeys(HANGING, "hang once"), patience=patience)
    stage.finish()
    record = examine(stage.ledger, SEARCH, stage.candidates)
    workers = {job: {pid for begun, pid in stage.begun() if begun == job} for job in HANGING}
    alone = [job for job in HANGING if len(workers[job]) < 2]
    more = [f"{job} was not scored by another worker" for job in alone]
    happened = "2 workers of 4 hung; allowed were 8 s, or 5 times the slowest"
    return conclude(happened, record, r"no answer after \d+ s \(typical: \S+ s\)", more=more, least=2)


def memory(stage: Stage) -> Finding:
    """A worker takes memory until Ray's own monitor ends it. The other node has its monitor off, to bear witness."""
    nodes = stage.up(unwatched=1)
    stage.drive(60, 0.2)
    stage.until_scored(10)
    use = psutil.virtual_memory()
    most = min(SWELL_MIB, int(SHARE * use.available / MIB))
    if most < LEAST_MIB:
        raise NotHere(f"{use.available / GIB:.1f} GiB of memory are available: it takes {LEAST_MIB / SHARE / 1024:.0f}")
    threshold = (use.total - use.available + MARGIN * most * MIB) / use.total
    order = stage.folder / "swell"
    order.write_text(str(most))
    settings = {
        "RAY_memory_usage_threshold": f"{threshold:.4f}",
        "RAY_memory_monitor_refresh_ms": str(MONITOR_MS),
        SWELL: str(order),
    }
    with nodes.standing_still():
        nodes.add("watched", 1, **settings)
        stage.until(lambda: not order.exists(), "a worker swelling")
    stage.finish()
    record = examine(stage.ledger, SEARCH, stage.candidates)
    happened = (
        f"a worker took up to {most / 1024:.1f} GiB (a quarter of what was available at most); "
        f"Ray's monitor stepped in at {100 * threshold:.0f} % of {use.total / GIB:.0f} GiB"
    )
    return conclude(happened, record, "the worker was killed: its node ran out of memory ")
