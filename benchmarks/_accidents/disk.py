"""Disk fault: the ledger's disk fills up; the search stops with a clear error and can be resumed later."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from benchmarks._accidents.record import altered, examine
from benchmarks._accidents.stage import Program, ScenarioResult, Stage, UnavailableError, conclude
from benchmarks._cluster_proof import problem
from evosearch.devcluster.process_environment import inherited
from evosearch.environment import TELEMETRY_OFF

ROOMY, PAGE = "1g", 4096  # size of the tmpfs, which uses memory only for its contents, and of a page in bytes
INPUT_ERROR = 2  # exit code
ADVICE = "Free disk space"  # in the error message
SCORED = 14  # candidates and baselines to score before the disk is filled
ENDED_WELL = (0, 3)  # promoted, or rejected by the gate


def disk_full(stage: Stage) -> ScenarioResult:
    """Fill the ledger's disk during `evosearch run`, then free space and resume."""
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
    if code != INPUT_ERROR or ADVICE not in said:
        more.append(f"on a full disk the exit code was {code}: {said}")
    if refused != INPUT_ERROR or ADVICE not in _error(again):
        more.append(f"on a restart with a full disk the exit code was {refused}: {_error(again)}")
    if ended not in ENDED_WELL:
        more.append(f"after space was freed the exit code was {ended}: {_error(last)}")
    happened = (
        f"disk full after {len(before)} recorded events: exit code {code}; restarted on the full disk: {refused}; "
        f"after space was freed: {ended}"
    )
    reasons = [f"standard error: {one.replace(f'{stage.folder}/', '')}" for one in (said, _error(again))]
    return conclude(happened, record, more=more, reasons=reasons)


@contextmanager
def _disk(folder: Path) -> Iterator[Path]:
    """Mount a tmpfs.

    Raises:
        UnavailableError: This process is not allowed to.
    """
    folder.mkdir()
    if os.geteuid() != 0:
        raise UnavailableError("only root can mount a disk")
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        raise UnavailableError(f"cannot mount a disk: {mounted.stderr.strip()}")
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
    del spec["promotion"]["register_as"]  # needs a registry
    path.write_text(yaml.safe_dump(spec, sort_keys=False))
    return path


def _run(stage: Stage, spec: Path, name: str) -> Program:
    environment = inherited(os.environ) | TELEMETRY_OFF
    environment |= {"EVOSEARCH_RUNS": str(stage.folder / "runs"), "EVOSEARCH_DATA": str(stage.folder / "data")}
    command = [sys.executable, "-m", "evosearch.cli.main", "run", str(spec)]
    stage.driver = Program(command, environment, stage.folder, stage.folder / f"{name}.log")
    return stage.driver


def _error(program: Program) -> str:
    """Last line of a program's log."""
    return (program.said().splitlines() or ["nothing"])[-1].strip()
