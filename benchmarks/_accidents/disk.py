"""The disk that a ledger is on is full: the search stops and says so, and goes on once there is room again."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from benchmarks._accidents.record import altered, examine
from benchmarks._accidents.stage import Finding, NotHere, Program, Stage, conclude
from benchmarks._cluster_proof import problem
from evosearch.devcluster.environment import kept
from evosearch.environment import TELEMETRY_OFF

ROOMY, PAGE = "1g", 4096  # bytes of the disk; it takes memory only as it fills
WRONG_INPUT = 2  # exit code
SCORED = 14  # candidates and baselines, until the disk is full
ENDED_WELL = (0, 3)  # promoted, or the gate said no


def disk_full(stage: Stage) -> Finding:
    """The disk of the ledger is full while `evosearch run` writes it; there is room again, and it goes on."""
    stage.search = problem.NAME
    with _disk(stage.folder / "disk") as disk:
        stage.ledger = f"sqlite:///{disk / 'ledger.db'}"
        spec = _write_spec(stage)
        first = _run(stage, spec, "first")
        stage.until_scored(SCORED)
        early = stage.events()
        _resize(disk, str(shutil.disk_usage(disk).used + PAGE))
        code = first.wait()
        said = _error(first)
        again = _run(stage, spec, "again")
        refused = again.wait()
        _resize(disk, ROOMY)
        before = stage.events()
        last = _run(stage, spec, "last")
        ended = last.wait()
        record = examine(stage.ledger, problem.NAME, problem.CANDIDATES)
        more = altered(early, before) + altered(before, stage.events())
    if code != WRONG_INPUT or "disk" not in said or "Make room" not in said:
        more.append(f"with the disk full it ended with {code}, and said: {said}")
    if refused != WRONG_INPUT or "Make room" not in _error(again):
        more.append(f"started while the disk was full it ended with {refused}, and said: {_error(again)}")
    if ended not in ENDED_WELL:
        more.append(f"after room was made it ended with {ended}: {_error(last)}")
    happened = (
        f"the disk was full with {len(before)} events on record: exit code {code}; started again on it: {refused}; "
        f"after room was made: {ended}"
    )
    reasons = [f"standard error: {one.replace(f'{stage.folder}/', '')}" for one in (said, _error(again))]
    return conclude(happened, record, more=more, reasons=reasons)


@contextmanager
def _disk(folder: Path) -> Iterator[Path]:
    """A disk of its own, in memory."""
    folder.mkdir()
    if os.geteuid() != 0:
        raise NotHere("a disk of its own can be mounted by root alone")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        raise NotHere(f"no disk of its own can be mounted: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(disk)], check=True)


def _write_spec(stage: Stage) -> Path:
    problem.prepare()
    path = problem.write_spec(stage.folder, stage.ledger, "jsonl:events.jsonl")
    spec = yaml.safe_load(path.read_text())
    spec["workers"] = {"executor": "local", "threads": 1, "device": "cpu"}
    del spec["promotion"]["register_as"]  # which takes a registry
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def _run(stage: Stage, spec: Path, name: str) -> Program:
    environment = kept(os.environ) | TELEMETRY_OFF
    environment |= {"EVOSEARCH_RUNS": str(stage.folder / "runs"), "EVOSEARCH_DATA": str(stage.folder / "data")}
    command = [sys.executable, "-m", "evosearch.cli.main", "run", str(spec)]
    stage.driver = Program(command, environment, stage.folder, stage.folder / f"{name}.log")
    return stage.driver


def _error(program: Program) -> str:
    """The message that it ended with: its last line."""
    return (program.said().splitlines() or ["nothing"])[-1].strip()
