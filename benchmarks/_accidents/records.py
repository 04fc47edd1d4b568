"""Faults of the ledger's writer: its connections are terminated, its server crashes, its process is killed."""

import os
import random
import re
import time

import psycopg

from benchmarks._accidents.record import altered, examine
from benchmarks._accidents.stage import ScenarioResult, Stage, UnavailableError, conclude
from benchmarks._light_workers.driver import SEARCH
from evosearch.devcluster.postgres import Postgres, find_programs

DATABASE = "faults"
DROPS = 12  # number of connections to terminate
CAUGHT_S = 10.0  # time in which a running search writes an event
AWAY_S = 3.0  # downtime of the server
KILLS = 3


def connections(stage: Stage) -> ScenarioResult:
    """Terminate the writer's connections within transactions, then crash and restart the server."""
    if find_programs() is None:
        raise UnavailableError("PostgreSQL is not installed")
    server = Postgres(stage.folder / "postgres")
    try:
        server.start()
        server.create_database(DATABASE)
        os.environ["PGPASSFILE"] = str(server.passfile)
        stage.ledger = server.url(DATABASE)
        stage.up(first=2)
        stage.drive(200, 0.05, {"PGPASSFILE": str(server.passfile)})
        stage.until_scored(10)
        caught = sum(_cut_off(server) for _ in range(DROPS))
        before = stage.events()
        stage.until(lambda: len(stage.events()) > len(before), "resumed after lost connections")
        server.crash()
        time.sleep(AWAY_S)
        server.start()
        stage.until(lambda: len(stage.events()) > len(before), "resumed after the crash")
        caught += _cut_off(server)
        stage.finish()
        record = examine(stage.ledger, SEARCH, stage.candidates)
        more = altered(before, stage.events())
    finally:
        server.stop()
    assert stage.driver is not None
    lines = [line.partition(": ")[2] for line in stage.driver.said().splitlines() if line.startswith("postgresql:")]
    said = [line for line in lines if "Retrying for" in line]
    if caught < DROPS:
        more.append(f"only {caught} of {DROPS} connections were terminated within a transaction")
    if not said or len(said) != sum(line.startswith("back after") for line in lines):
        more.append(f"the search logged {len(said)} lost connections and did not recover from all: {lines}")
    happened = f"{caught} connections terminated within a write transaction, then the server killed and restarted"
    reasons = [f"log: {reason}" for reason in dict.fromkeys(re.sub(r"(port|PID) \d+", r"\1 …", one) for one in said)]
    return conclude(happened, record, more=more, reasons=reasons)


def _cut_off(server: Postgres) -> int:
    """Terminate the writer's connection while its insert waits for our lock; return 1, or 0 if it did not write."""
    query = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        " AND wait_event_type = 'Lock' AND state = 'active' AND query LIKE 'INSERT%'"
    )
    time.sleep(random.uniform(0.0, 0.3))
    with (
        server.connect(DATABASE) as monitor,
        psycopg.connect(server.url(DATABASE), passfile=str(server.passfile)) as locker,
    ):
        locker.execute("LOCK TABLE ledger_events IN SHARE MODE")  # released at the end of this transaction
        deadline = time.monotonic() + CAUGHT_S
        while time.monotonic() < deadline:
            if pids := [row[0] for row in monitor.execute(query)]:
                monitor.execute("SELECT pg_terminate_backend(%s)", (pids[0],))
                return 1
            time.sleep(0.01)
    return 0


def driver_killed(stage: Stage) -> ScenarioResult:
    """Kill the process of the search and restart it; scored candidates must not be scored again."""
    stage.up(first=2)
    count = 120
    stage.drive(count, 0.2)
    more: list[str] = []
    for kill in range(KILLS):
        stage.until_scored(count * (kill + 1) // (KILLS + 1))
        time.sleep(random.uniform(0.0, 0.3))
        assert stage.driver is not None
        stage.driver.kill()
        before = stage.events()
        known = {event.payload["candidate"] for event in before if event.type == "scored"}
        jobs = len(stage.begun())
        stage.again()
        stage.until_scored(len(known) + 5)
        more += altered(before, stage.events())
        later = {job.partition("@")[0] for job, _ in stage.begun()[jobs:]}
        more += [f"candidate {name} was scored and then submitted again" for name in sorted(later & known)]
    stage.finish()
    record = examine(stage.ledger, SEARCH, count)
    if record.sessions != KILLS + 1:
        more.append(f"{record.sessions} starts are recorded, not {KILLS + 1}")
    resumed = [event.payload["resumed"] for event in stage.events() if event.type == "started"]
    reasons = [f"started {len(resumed)} times, {sum(resumed)} of them resumed"]
    happened = f"the process of the search was killed and restarted {KILLS} times"
    return conclude(happened, record, more=more, reasons=reasons)
