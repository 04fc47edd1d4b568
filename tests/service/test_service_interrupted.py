"""SIGKILL and Ctrl-C on the real program with Ray, on random models: the same command continues the same search."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from evosearch.search.ledger.ledger import Ledger

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STEP_S = 600.0  # limit for one phase of a search, on a busy machine
CANDIDATES = 60  # seconds of work: the signal must arrive while the search runs
World = Callable[..., Path]
Record = dict[str, list[Mapping[str, Any]]]


@pytest.fixture
def spec(world: World) -> Path:
    """A search of ten generations on Ray."""
    return world(
        name="small", budget={"candidates": CANDIDATES}, workers={"count": 1, "threads": 1}, promotion={"finalists": 2}
    )


@pytest.fixture
def uninterrupted(world: World, tmp_path: Path, evosearch: Callable[..., tuple[int, str, str]]) -> Record:
    """The record of the same search, scored in this process without an interruption."""
    local = world(name="small", budget={"candidates": CANDIDATES}, promotion={"finalists": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EVOSEARCH_RUNS", str(tmp_path / "uninterrupted"))
        code, _, err = evosearch("run", local)
    assert code in (0, 3), err
    return read(tmp_path / "uninterrupted")


def read(runs: Path) -> Record:
    """Events of the ledger by type, without times and workers."""
    with Ledger.open(f"sqlite:///{runs / 'small' / 'ledger.db'}", read_only=True) as ledger:
        (info,) = ledger.searches()
        events = ledger.events(info.search_id)
    found: Record = {kind: [] for kind in ("asked", "scored", "told", "gated")}
    for event in events:
        if event.type in found:
            found[event.type].append({k: v for k, v in event.payload.items() if k not in ("seconds", "worker")})
    found["scored"].sort(key=lambda payload: (payload["split"], payload["candidate"]))
    return found


def scored(runs: Path) -> int:
    """The number of score cards on record."""
    try:
        with Ledger.open(f"sqlite:///{runs / 'small' / 'ledger.db'}", read_only=True) as ledger:
            return sum(len(ledger.events(info.search_id, types=["scored"])) for info in ledger.searches())
    except ValueError:  # there is no ledger yet
        return 0


def _as_in_a_terminal() -> None:
    """Let SIGINT through, which a shell's background jobs ignore, and so would all that they start."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def running(spec: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The program in a process group of its own; the group is killed at the end."""
    command = [sys.executable, "-m", "evosearch.cli.main", "run", str(spec)]
    with log.open("wb") as out:
        process = subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, preexec_fn=_as_in_a_terminal
        )
    try:
        yield process
    finally:
        with suppress(psutil.NoSuchProcess):
            tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
            for member in tree:
                with suppress(psutil.NoSuchProcess):  # Ray's processes end once the one they serve is gone
                    member.kill()
            psutil.wait_procs(tree, timeout=30)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(STEP_S)


def wait_until_scored(process: subprocess.Popen[bytes], runs: Path, count: int, log: Path) -> None:
    """Wait until `count` score cards are recorded while the program runs."""
    deadline = time.monotonic() + STEP_S
    while scored(runs) < count:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def run_to_end(spec: Path) -> None:
    """Run the same command again until it finishes."""
    command = [sys.executable, "-m", "evosearch.cli.main", "run", str(spec)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=STEP_S, check=False)
    assert done.returncode in (0, 3), done.stderr[-3000:]


def kill_when_scored(spec: Path, runs: Path, count: int, log: Path) -> None:
    """Start the search, and SIGKILL its process tree once `count` score cards are recorded."""
    with running(spec, log) as process:
        wait_until_scored(process, runs, count, log)


@pytest.mark.parametrize(
    "count",
    [
        pytest.param(3, marks=pytest.mark.nightly),
        8,
        pytest.param(13, marks=pytest.mark.nightly),
    ],
    ids=["baselines", "first-generation", "second-generation"],
)
def test_kill_9_of_the_process_tree_then_the_same_command(
    spec: Path, uninterrupted: Record, count: int, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    kill_when_scored(spec, runs, count, tmp_path / "log")
    before = read(runs)
    assert count <= len(before["scored"]) < len(uninterrupted["scored"])
    assert not before["gated"]
    run_to_end(spec)
    after = read(runs)
    assert after["asked"] == uninterrupted["asked"]
    assert after["told"] == uninterrupted["told"]
    assert after["scored"] == uninterrupted["scored"], "the same scores, each once"
    assert after["gated"] == uninterrupted["gated"]


@pytest.mark.nightly
def test_kill_9_of_an_asynchronous_search_then_the_same_command(spec: Path, tmp_path: Path) -> None:
    """The existing record is replayed (or the run would stop); nothing is lost or scored twice."""
    changed = yaml.safe_load(spec.read_text())
    changed["optimizer"]["asynchronous"] = True
    changed["workers"]["count"] = 2
    spec.write_text(yaml.safe_dump(changed, sort_keys=False))
    runs = tmp_path / "runs"
    kill_when_scored(spec, runs, 10, tmp_path / "log")
    before = read(runs)
    run_to_end(spec)
    after = read(runs)
    for kind in ("asked", "told"):
        assert after[kind][: len(before[kind])] == before[kind]
    told = [one["candidate"] for payload in after["told"] for one in payload["observations"]]
    assert sorted(told, key=int) == [payload["candidate"] for payload in after["asked"]]
    assert [payload["candidate"] for payload in after["asked"]] == [str(index) for index in range(CANDIDATES)]
    scored = [(payload["candidate"], payload["split"]) for payload in after["scored"]]
    assert len(set(scored)) == len(scored)
    known = {payload["candidate"]: payload for payload in before["scored"]}
    assert all(payload in after["scored"] for payload in known.values())
    new = {payload["candidate"] for payload in after["asked"] if payload["duplicate_of"] is None}
    assert new <= dict(scored).keys()


def test_ctrl_c_stops_cleanly_and_the_same_command_continues(spec: Path, uninterrupted: Record, tmp_path: Path) -> None:
    """As in a terminal, the signal goes to the complete process group, Ray's processes included."""
    runs, log = tmp_path / "runs", tmp_path / "log"
    with running(spec, log) as process:
        wait_until_scored(process, runs, 8, log)
        os.killpg(process.pid, signal.SIGINT)
        process.wait(STEP_S)
    output = log.read_text()
    assert process.returncode == 130, output
    assert "Interrupted. Run the same command to resume." in output
    assert "Traceback" not in output
    with Ledger.open(f"sqlite:///{runs / 'small' / 'ledger.db'}", read_only=True) as ledger:
        (info,) = ledger.searches()
        assert info.stopped == "interrupted"
        assert ledger.holder(info.search_id) is None
    run_to_end(spec)
    assert read(runs)["asked"] == uninterrupted["asked"]
    assert read(runs)["scored"] == uninterrupted["scored"]
