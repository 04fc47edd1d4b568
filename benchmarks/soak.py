#!/usr/bin/env python3
"""A search of many cheap candidates while workers and nodes are killed: what is lost, what is doubled, what grows.

    scripts/bench/soak [--candidates 2000] [--every 50] [--seconds 0.2] [--seed 0] [--folder DIR]

A cluster as `scripts/cluster` makes it: PostgreSQL for the ledger, an MLflow server with accounts, a Ray head and three
nodes of two workers each. The controller, ledger, pool and mirror are real and the workers light: they sleep, and make
a score card of the recipe. About every 50 scored candidates a worker gets SIGKILL, every eighth time a node, which
comes back. In the end ledger and MLflow are held against each other, candidate by candidate, over REST. Prints one JSON
document and a table; exit code 1 where something was lost, doubled, or differs, or the controller grew.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
import psycopg

from benchmarks._cluster_proof.evidence import check_mirror, of_type, read, unanswered
from benchmarks._light_workers.driver import SEARCH
from evosearch.devcluster import mlflow_server
from evosearch.devcluster.cluster import Cluster
from evosearch.devcluster.environment import ACCOUNT, of_nodes, tracking
from evosearch.devcluster.mlflow_rest import Rest
from evosearch.devcluster.processes import HOST
from evosearch.devcluster.ray_nodes import worker
from evosearch.errors import SearchError

SCRIPTS = Path(__file__).resolve().parents[1]
NODES, WORKERS = 3, 2  # nodes, and workers of each
NODE_EVERY = 8  # kills, of which one is a node's
AWAY_S = 5.0  # that a node is away before it is started again
GROWTH_KIB = 16.0  # of the controller for each candidate, at most
MIB = 2**20


class Soak:
    """One run; `figures` is what it measured."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.random = options, random.Random(options.seed)
        self.cluster = Cluster(folder / "cluster", say)
        self.folder = folder
        self.kills = {"worker": 0, "node": 0}
        self.memory: dict[int, float] = {}  # candidates scored → MiB of the controller
        self._down: dict[str, float] = {}  # node → when it was killed

    def run(self) -> dict[str, Any]:
        self.cluster.up(nodes=NODES, cpus_per_node=WORKERS)
        began = time.monotonic()
        with open(self.folder / "driver.log", "wb") as log:
            driver = self._drive(log)
            try:
                self._kill_now_and_then(driver)
            finally:
                driver.kill() if driver.poll() is None else None
        if driver.returncode:
            raise SearchError((self.folder / "driver.log").read_text()[-3000:])
        return self._figures(time.monotonic() - began)

    def _drive(self, log: Any) -> subprocess.Popen[bytes]:
        state = self.cluster.state
        settings = {
            "ledger": self.cluster.ledger(),
            "tracking": tracking(state),
            "address": f"{HOST}:{state.ports['ray']}",
            "folder": str(self.folder),
            "candidates": self.options.candidates,
            "seconds": self.options.seconds,
        }
        environment = of_nodes(self.cluster.places, state, self.cluster.postgres) | {"PYTHONPATH": str(SCRIPTS)}
        command = [sys.executable, "-m", "benchmarks._light_workers.driver", json.dumps(settings)]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def _kill_now_and_then(self, driver: "subprocess.Popen[bytes]") -> None:
        """Until the driver ends: kill about every so many candidates, and read its memory on the way."""
        process, last = psutil.Process(driver.pid), self.options.candidates
        marks = [last // 10, last // 2, last]
        due = self._next(0)
        while driver.poll() is None:
            scored = self._scored()
            while marks and scored >= marks[0]:
                self.memory[marks.pop(0)] = process.memory_info().rss / MIB
            if due <= scored < last - WORKERS * NODES:
                self._kill()
                due = self._next(scored)
            if self._down and time.monotonic() - min(self._down.values()) > AWAY_S:
                self.cluster.up()
                self._down.clear()
            time.sleep(0.2)

    def _next(self, scored: int) -> int:
        every = self.options.every
        return scored + self.random.randint(every * 3 // 5, every * 7 // 5)

    def _kill(self) -> None:
        if sum(self.kills.values()) % NODE_EVERY == NODE_EVERY - 1:
            name = worker(self.random.randint(1, NODES))
            self.cluster.kill_node(name)
            self._down[name] = time.monotonic()
            self.kills["node"] += 1
            return
        found = [process for process in self.cluster.processes() if _is_worker(process)]
        if found:
            self.random.choice(found).kill()
            self.kills["worker"] += 1

    def _scored(self) -> int:
        query = "SELECT count(*) FROM ledger_events WHERE type = 'scored'"
        try:
            with psycopg.connect(self.cluster.ledger()) as connection:
                (count,) = connection.execute(query).fetchone() or (0,)
        except psycopg.errors.UndefinedTable:
            return 0
        return int(count)

    def _figures(self, seconds: float) -> dict[str, Any]:
        events = read(self.cluster.ledger(), SEARCH)
        asked, scored = of_type(events, "asked"), of_type(events, "scored")
        told = [one["candidate"] for payload in of_type(events, "told") for one in payload["observations"]]
        names = [payload["candidate"] for payload in scored]
        account = (ACCOUNT, mlflow_server.account_password(self.cluster.places))
        try:
            mirror, agrees = check_mirror(Rest(tracking(self.cluster.state), account), SEARCH, events), True
        except SearchError as exc:
            mirror, agrees = str(exc), False
        first, *_, last = sorted(self.memory)
        grown = 1024.0 * (self.memory[last] - self.memory[first]) / (last - first)
        retried = of_type(events, "retried")
        return {
            "candidates": len(asked),
            "kills": self.kills,
            "retried": len(retried),
            "reasons": sorted({payload["reason"].split(":")[0] for payload in retried}),
            "failed": len(of_type(events, "failed")),
            "lost": len(unanswered(events)) + len({p["candidate"] for p in asked} - set(told)),
            "doubled": len(names) - len(set(names)) + len(told) - len(set(told)),
            "mirror": mirror,
            "agrees": agrees,
            "controller_mib": {str(count): round(value, 1) for count, value in sorted(self.memory.items())},
            "growth_kib_per_candidate": grown,
            "seconds": seconds,
        }


def _is_worker(process: psutil.Process) -> bool:
    try:
        return process.name().startswith("ray::Actor")
    except psutil.NoSuchProcess:
        return False


def table(found: dict[str, Any]) -> str:
    memory = " → ".join(f"{value:.0f}" for value in found["controller_mib"].values())
    rows = {
        "candidates": found["candidates"],
        "killed: workers, nodes": f"{found['kills']['worker']}, {found['kills']['node']}",
        "scored again elsewhere": found["retried"],
        "lost": found["lost"],
        "doubled": found["doubled"],
        "failed": found["failed"],
        "ledger and MLflow": found["mirror"],
        f"controller, MiB, after {', '.join(found['controller_mib'])} candidates": memory,
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--candidates", type=int, default=2000)
    parser.add_argument("--every", type=int, default=50, help="scored candidates between two kills, about")
    parser.add_argument("--seconds", type=float, default=0.2, help="that a candidate takes a worker")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep everything there")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="evosearch-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o711)  # PostgreSQL's user has to pass it
    soak = Soak(options, folder)
    os.environ["PGPASSFILE"] = str(soak.cluster.postgres.passfile)
    try:
        found = soak.run()
    finally:
        if soak.cluster.places.folder.is_dir():
            soak.cluster.down()
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    print(f"\n{table(found)}\n", file=sys.stderr)
    print(json.dumps(found))
    well = found["lost"] == found["doubled"] == found["failed"] == 0 and found["agrees"]
    return int(not well or found["growth_kib_per_candidate"] > GROWTH_KIB)


if __name__ == "__main__":
    sys.exit(main())
