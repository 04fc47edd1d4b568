"""Soak test: a search with many cheap candidates on a cluster, while workers and nodes are killed.

    .venv/bin/python -m benchmarks.soak [--candidates 2000] [--every 50] [--seconds 0.2] [--seed 0] [--folder DIR]
    .venv/bin/python -m benchmarks.soak --tracking sqlite|http [--restart] [--candidates 10000] [--seconds 0.2]
        [--folder DIR]

Runs on a development cluster: PostgreSQL for the ledger, an MLflow server with accounts, a Ray head and three nodes
with two workers each. Controller, ledger, pool and mirror are real; the workers are light: they sleep and compute a
score card from the recipe. After about every 50 scored candidates a worker is killed; every eighth time it is a node,
which is then restarted. Afterwards ledger and MLflow are compared by candidate through the REST API. Prints one JSON
document and a table. Exit code 1 if a candidate was lost or duplicated or differs, or if the controller's memory grew
by more than 16 KiB per candidate. Needs `./scripts/setup server` and PostgreSQL.

With `--tracking`, nothing is killed and no cluster is needed: six light workers in this process score 10,000
candidates, with MLflow in a SQLite file or behind a server, which `--restart` kills in the middle of the search and
starts again 10 s later. Prints how far the mirror is behind at the end, and what a
candidate takes on the disk. Exit code 1 if the mirror needs more than 60 s, or a candidate has no run or an artifact
folder.
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
from benchmarks._light_workers import night
from benchmarks._light_workers.driver import SEARCH
from benchmarks._paths import ROOT
from benchmarks._report import publish
from evosearch.devcluster import mlflow_server
from evosearch.devcluster.cluster import Cluster
from evosearch.devcluster.mlflow_rest import Rest
from evosearch.devcluster.process_environment import ACCOUNT, of_nodes, tracking
from evosearch.devcluster.processes import HOST
from evosearch.devcluster.ray_nodes import worker
from evosearch.errors import SearchError

NODES, WORKERS = 3, 2  # nodes, workers per node
NODE_EVERY = 8  # every eighth kill is that of a node
AWAY_S = 5.0  # time until a killed node is restarted
GROWTH_KIB = 16.0  # maximum growth of the controller per candidate
MIB = 2**20


class Soak:
    """One soak test with its own cluster."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self.options, self.random = options, random.Random(options.seed)
        self.cluster = Cluster(folder / "cluster", say)
        self.folder = folder
        self.kills = {"worker": 0, "node": 0}
        self.memory: dict[int, float] = {}  # candidates scored → MiB of the controller
        self._down: dict[str, float] = {}  # node → monotonic time of its kill

    def run(self) -> dict[str, Any]:
        """Run the search to its end; return the figures.

        Raises:
            SearchError: The search failed; the message contains the end of its log.
        """
        self.cluster.up(nodes=NODES, cpus_per_node=WORKERS)
        began = time.monotonic()
        with open(self.folder / "driver.log", "wb") as log:
            driver = self._drive(log)
            try:
                self._inject_faults(driver)
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
        environment = of_nodes(self.cluster.places, state, self.cluster.postgres) | {"PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-m", "benchmarks._light_workers.driver", json.dumps(settings)]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    def _inject_faults(self, driver: "subprocess.Popen[bytes]") -> None:
        """Kill a worker or node about every `every` candidates until the driver ends; sample the driver's memory."""
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
        proposed, scored = of_type(events, "asked"), of_type(events, "scored")
        reported = [one["candidate"] for payload in of_type(events, "told") for one in payload["observations"]]
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
            "candidates": len(proposed),
            "kills": self.kills,
            "retried": len(retried),
            "reasons": sorted({payload["reason"].split(":")[0] for payload in retried}),
            "failed": len(of_type(events, "failed")),
            "lost": len(unanswered(events)) + len({one["candidate"] for one in proposed} - set(reported)),
            "duplicated": len(names) - len(set(names)) + len(reported) - len(set(reported)),
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
    """Markdown table with one figure per row."""
    memory = " → ".join(f"{value:.0f}" for value in found["controller_mib"].values())
    rows = {
        "candidates": found["candidates"],
        "workers killed, nodes killed": f"{found['kills']['worker']}, {found['kills']['node']}",
        "retried on another worker": found["retried"],
        "lost": found["lost"],
        "duplicated": found["duplicated"],
        "failed": found["failed"],
        "ledger and MLflow": found["mirror"],
        f"controller memory after {', '.join(found['controller_mib'])} candidates, MiB": memory,
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


def say(text: str) -> None:
    """Print a line of progress on standard error."""
    print(text, file=sys.stderr, flush=True)


def _night(options: argparse.Namespace, folder: Path) -> int:
    try:
        found = night.Night(options.candidates, options.seconds, options.tracking, folder, options.restart).run()
    finally:
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    publish(found, night.table(found))
    return int(not night.passed(found))


def main() -> int:
    """Run the soak test; return 1 if it found a problem."""
    parser = argparse.ArgumentParser("python -m benchmarks.soak", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tracking", choices=("sqlite", "http"), help="measure only the mirror, in such a store")
    parser.add_argument("--restart", action="store_true", help="with --tracking http: kill the server in the middle")
    parser.add_argument("--candidates", type=int, help="default 2000, with --tracking 10000")
    parser.add_argument("--every", type=int, help="mean number of scored candidates between kills, default 50")
    parser.add_argument(
        "--seconds", type=float, default=0.2, help="time that a worker needs per candidate, default %(default)s"
    )
    parser.add_argument("--seed", type=int, help="of the kills, default 0")
    parser.add_argument("--folder", type=Path, help="keep logs and databases in this folder")
    options = parser.parse_args()
    if options.tracking and (options.every is not None or options.seed is not None):
        parser.error("--every and --seed: with --tracking, nothing is killed")
    if options.restart and options.tracking != "http":
        parser.error("--restart: only with --tracking http, which has a server")
    options.candidates = options.candidates or (10_000 if options.tracking else 2000)
    options.every, options.seed = options.every or 50, options.seed or 0
    folder = options.folder or Path(tempfile.mkdtemp(prefix="evosearch-soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    if options.tracking:
        return _night(options, folder)
    folder.chmod(0o711)  # PostgreSQL's user must be able to traverse it
    soak = Soak(options, folder)
    os.environ["PGPASSFILE"] = str(soak.cluster.postgres.passfile)
    try:
        found = soak.run()
    finally:
        if soak.cluster.places.folder.is_dir():
            soak.cluster.down()
        if options.folder is None:
            shutil.rmtree(folder, ignore_errors=True)
    publish(found, table(found))
    well = found["lost"] == found["duplicated"] == found["failed"] == 0 and found["agrees"]
    return int(not well or found["growth_kib_per_candidate"] > GROWTH_KIB)


if __name__ == "__main__":
    sys.exit(main())
