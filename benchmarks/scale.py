"""Scaling of a search: two workers compared with one, overhead per candidate, and time from submit to the first score.

    .venv/bin/python -m benchmarks.scale [--only workers|overhead|submit] [--candidates N] [--repeats 2]

workers   candidates per second of `recipes/groups.yaml`, from the first proposal to the last report, with one and with
          two single-threaded CPU workers, alternating
overhead  time of controller, ledger (PostgreSQL) and Ray per candidate, and bytes sent and stored, on a development
          cluster with 16 light workers that take no time to score
submit    seconds from `evosearch submit` to the first scored candidate on such a cluster, by stage

Prints one JSON document and tables, including the load of a thousand GPUs on one controller, computed from `overhead`.
Exit code 1 if two workers are less than 1.5 times as fast as one. `overhead` and `submit` need `./scripts/setup server`
and PostgreSQL.
"""

import argparse
import json
import os
import pickle
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import psycopg
import requests
import yaml

from benchmarks._cluster_proof import problem
from benchmarks._cluster_proof.evidence import of_type, read
from benchmarks._light_workers.driver import SEARCH, Settings
from benchmarks._paths import EVALS, RECIPES, ROOT
from benchmarks._report import publish
from evosearch.devcluster.cluster import Cluster
from evosearch.devcluster.process_environment import dashboard, inherited, of_clients, of_nodes, tracking
from evosearch.devcluster.processes import HOST
from evosearch.environment import TELEMETRY_OFF
from evosearch.evaluation.types import ItemBatch
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.protocols import Job, Outcome

ACTORS = 16
GPUS, SECONDS_EACH, NIGHT_H = 1000, 60.0, 10.0  # extrapolation: GPUs, seconds per candidate, hours


def workers(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the candidates per second with one and with two workers."""
    count = options.candidates or 32
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(options.repeats):
        for number in ((1, 2), (2, 1))[turn % 2]:
            rates[number].append(_rate(folder / f"{turn}-{number}", number, count))
    ratio = statistics.median(rates[2]) / statistics.median(rates[1])
    return {"candidates": count, "per_second": rates, "ratio": ratio, "least": 1.5}


def _rate(folder: Path, number: int, candidates: int) -> float:
    """Run one search; return its candidates per second, without the baselines, which warm up the workers."""
    folder.mkdir(parents=True)
    spec = yaml.safe_load((RECIPES / "groups.yaml").read_text())
    spec |= {
        "name": "scale",
        "suite": str(EVALS / "quickstart.yaml"),
        "budget": {"candidates": candidates},
        "workers": {"executor": "ray", "count": number, "threads": 1, "device": "cpu"},
        "tracking": {"uri": "jsonl:events.jsonl"},
        "ledger": f"sqlite:///{folder / 'ledger.db'}",
        "promotion": {"finalists": 1},
    }
    path = folder / "scale.yaml"
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    environment = os.environ | TELEMETRY_OFF | {"EVOSEARCH_RUNS": str(folder / "runs"), "EVOSEARCH_DATA": str(folder)}
    command = [sys.executable, "-m", "evosearch.cli.main", "run", str(path), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3):
        raise SystemExit(done.stderr)
    with Ledger.open(spec["ledger"], read_only=True) as ledger:
        (info,) = ledger.searches()
        events = ledger.events(info.search_id)
    proposed = [event.time for event in events if event.type == "asked"]
    reported = [event.time for event in events if event.type == "told"]
    return candidates / (reported[-1] - proposed[0])


def overhead(options: argparse.Namespace, cluster: Cluster, folder: Path) -> dict[str, Any]:
    """Measure the overhead per candidate with sixteen workers that take no time to score."""
    count = options.candidates or 2000
    state = cluster.state
    address = f"{HOST}:{state.ports['ray']}"
    settings = Settings(cluster.ledger(), None, address, str(folder), count, 0.0, ACTORS)
    environment = of_nodes(cluster.places, state, cluster.postgres) | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "benchmarks._light_workers.driver", json.dumps(settings.__dict__)]
    half, marks = count // 2, dict[int, tuple[int, float, float]]()  # candidates → scored, monotonic s, CPU s
    with open(folder / "driver.log", "wb") as log:
        driver = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        process = psutil.Process(driver.pid)
        while driver.poll() is None:
            scored = _count(cluster.ledger(), "type = 'told'")
            if scored >= half and half not in marks:
                marks[half] = (scored, time.monotonic(), _cpu_s(process))
            if scored > half:
                marks[count] = (scored, time.monotonic(), _cpu_s(process))
            time.sleep(0.1)
    if driver.returncode:
        raise SystemExit((folder / "driver.log").read_text()[-3000:])
    (n0, t0, c0), (n1, t1, c1) = marks[half], marks[count]
    events = read(cluster.ledger(), SEARCH)
    used = {payload["worker"] for payload in of_type(events, "scored")}
    world = settings.world
    job = Job("0@search", world.space.fill(world.space.initial()), world.batch)
    outcome = Outcome(job, "host:1", card=world.card(job))
    with psycopg.connect(cluster.ledger()) as connection:
        (size,) = connection.execute("SELECT pg_database_size(current_database())").fetchone() or (0,)
    bare = replace(job, batch=ItemBatch("search", ()))
    return {
        "candidates": count,
        "workers": len(used),
        "ms_per_candidate": 1000.0 * (t1 - t0) / (n1 - n0),
        "controller_cpu_ms": 1000.0 * (c1 - c0) / (n1 - n0),
        "job_bytes": len(pickle.dumps(bare)),
        "result_bytes": len(pickle.dumps(replace(outcome, job=bare))),
        "batch_bytes": len(pickle.dumps(world.batch)),
        "dimensions": len(world.space.dimensions),
        "items": len(world.batch),
        "events_per_candidate": len(events) / count,
        "score_rows_per_candidate": _count(cluster.ledger(), "true", "ledger_scores") / count,
        "ledger_bytes_per_candidate": size / count,
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _count(url: str, where: str, table: str = "ledger_events") -> int:
    try:
        with psycopg.connect(url) as connection:
            (count,) = connection.execute(f"SELECT count(*) FROM {table} WHERE {where}").fetchone() or (0,)
    except psycopg.errors.UndefinedTable:
        return 0
    return int(count)


def submit(options: argparse.Namespace, cluster: Cluster, folder: Path) -> dict[str, Any]:
    """Measure the seconds from the command to the first scored baseline and candidate, by stage."""
    problem.prepare()
    spec = problem.write_spec(folder, cluster.ledger(), tracking(cluster.state))
    clients = of_clients(cluster.places, cluster.state, cluster.postgres)
    began = time.time()
    command = [sys.executable, "-m", "evosearch.cli.main", "submit", str(spec)]
    settings = inherited(os.environ) | TELEMETRY_OFF | clients
    done = subprocess.run(command, env=settings, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    returned = time.time()
    while not (first := _first_scored(cluster)):
        time.sleep(0.5)
    jobs = {job["metadata"]["evosearch_kind"]: job for job in _jobs(cluster)}
    check, run = jobs["check"], jobs["run"]
    events = read(cluster.ledger(), problem.NAME)
    started = next(event.time for event in events if event.type == "started")
    baseline = next(event.time for event in events if event.type == "scored")
    begins, ends, runs = check["start_time"] / 1000, check["end_time"] / 1000, run["start_time"] / 1000
    return {
        "checked and packed locally": begins - began,
        "checked on the cluster, a candidate scored": ends - begins,
        "queued and started": runs - ends,
        "prepared and recorded": started - runs,
        "workers started, first baseline scored": baseline - started,
        "other baselines, first candidate scored": first - baseline,
        "total": first - began,
        "`submit` returned after": returned - began,
    }


def _first_scored(cluster: Cluster) -> float | None:
    events = read(cluster.ledger(), problem.NAME)
    proposed = {event.payload["candidate"] for event in events if event.type == "asked"}
    found = (event.time for event in events if event.type == "scored" and event.payload["candidate"] in proposed)
    return next(found, None)


def _jobs(cluster: Cluster) -> list[dict[str, Any]]:
    headers = {"Authorization": f"Bearer {cluster.places.token.read_text()}"}
    response = requests.get(f"{dashboard(cluster.state)}/api/jobs/", headers=headers, timeout=30)
    response.raise_for_status()
    found: list[dict[str, Any]] = response.json()
    return [job for job in found if (job.get("metadata") or {}).get("evosearch_name") == problem.NAME]


def arithmetic(found: dict[str, Any]) -> dict[str, Any]:
    """Load of a thousand workers on one controller, if each needs a minute per candidate."""
    rate = GPUS / SECONDS_EACH
    night = rate * 3600.0 * NIGHT_H
    return {
        "workers": GPUS,
        "seconds_each": SECONDS_EACH,
        "candidates_per_second": rate,
        "messages_per_second": 2.0 * rate,  # a job and its result
        "kb_per_second": rate * (found["job_bytes"] + found["result_bytes"]) / 1e3,
        "controller_busy": rate * found["ms_per_candidate"] / 1e3,
        "hours": NIGHT_H,
        "candidates": night,
        "rows": night * (found["events_per_candidate"] + found["score_rows_per_candidate"]),
        "ledger_gb": night * found["ledger_bytes_per_candidate"] / 1e9,
    }


def table(found: dict[str, Any]) -> str:
    """Markdown table with one figure per row."""
    lines = ["| | |", "|---|---:|"]
    for name, value in found.items():
        shown = f"{value:,.2f}" if isinstance(value, float) else str(value)
        lines.append(f"| {name.replace('_', ' ')} | {shown} |")
    return "\n".join(lines)


@contextmanager
def _cluster(folder: Path, cpus_per_node: int) -> Iterator[Cluster]:
    cluster = Cluster(folder / "cluster", lambda line: print(line, file=sys.stderr, flush=True))
    os.environ["PGPASSFILE"] = str(cluster.postgres.passfile)
    try:
        cluster.up(nodes=2, cpus_per_node=cpus_per_node)
        yield cluster
    finally:
        if cluster.places.folder.is_dir():
            cluster.down(remove=True)


def main() -> int:
    """Run the measurements; return 1 if the second worker does not increase the rate enough."""
    parser = argparse.ArgumentParser("python -m benchmarks.scale", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=("workers", "overhead", "submit"))
    parser.add_argument("--candidates", type=int, help="default: 32 with real models, 2000 with light workers")
    parser.add_argument(
        "--repeats", type=int, default=2, help="searches for each number of real workers, default %(default)s"
    )
    options = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="evosearch-scale-") as name:
        folder = Path(name)
        folder.chmod(0o711)  # PostgreSQL's user must be able to traverse it
        if options.only in (None, "workers"):
            found["workers"] = workers(options, folder)
        if options.only in (None, "overhead"):
            with _cluster(folder / "light", ACTORS // 2) as cluster:
                found["overhead"] = overhead(options, cluster, folder)
                found["a thousand GPUs"] = arithmetic(found["overhead"])
        if options.only in (None, "submit"):
            with _cluster(folder / "submit", 1) as cluster:
                found["submit"] = submit(options, cluster, folder)
    publish(found, *(f"{name}\n\n{table(figures)}" for name, figures in found.items()))
    return int("workers" in found and found["workers"]["ratio"] < found["workers"]["least"])


if __name__ == "__main__":
    sys.exit(main())
