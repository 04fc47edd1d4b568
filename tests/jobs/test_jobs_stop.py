"""`evosearch stop` on this machine: between two stages, and on a host with a long name."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evosearch.errors import LedgerError
from evosearch.jobs.stop import _process, stop_here
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.ledger.lock import this_host
from evosearch.service import stages_lock
from evosearch.service.multi_stage import run_stages
from evosearch.spec.run_dir import default_run_dir

# A process that runs the stages of `night`, between the first stage and the second
BETWEEN = """
import signal, sys, time
from evosearch.service import stages_lock
from evosearch.spec.run_dir import default_run_dir

signal.signal(signal.SIGTERM, lambda *_: sys.exit(130))
with stages_lock.running(default_run_dir("night").folder, "night.yaml"):
    print("here", flush=True)
    time.sleep(600)
"""


def recorded(name: str) -> None:
    place = default_run_dir(name.partition(".")[0]).ledger
    with Ledger.open(place) as ledger:
        ledger.append(name, [("started", {"name": name, "spec": {}, "resumed": False})])
        ledger.append(name, [("stopped", {"reason": "candidates"})])


def test_a_run_between_two_stages_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path))
    recorded("night.one")
    assert stop_here("night")["was"] == "stopped: candidates", "nothing runs"
    process = subprocess.Popen([sys.executable, "-c", BETWEEN], stdout=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        assert f"process {process.pid} on " in str(stages_lock.runner(tmp_path / "night"))
        with (
            pytest.raises(LedgerError, match=rf"night.yaml: this search is being run by process {process.pid}"),
            stages_lock.running(tmp_path / "night", "night.yaml"),
        ):
            pass
        row = stop_here("night")
        assert process.wait(60) == 130
    finally:
        process.kill()
        process.communicate()
    assert (row["name"], row["was"], row["state"], row["clean"]) == (
        "night.one",
        "running",
        "stopped: candidates",
        True,
    )
    assert stages_lock.runner(tmp_path / "night") is None


def test_the_process_that_runs_the_stages_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOSEARCH_RUNS", str(tmp_path))
    seen: list[Any] = []

    class Spec:
        name, file = "night", Path("night.yaml")

        @property
        def suite(self) -> None:  # the first attribute that `run_stages` uses
            seen.append(stages_lock.runner(tmp_path / "night" / "one"))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_stages(Spec(), None, None)  # type: ignore[arg-type]
    assert seen == [f"this process ({os.getpid()})"]
    assert stages_lock.runner(tmp_path / "night") is None


@pytest.mark.parametrize("shown", [socket.gethostname, this_host], ids=["full", "short"])
def test_a_holder_is_recognized_by_full_and_short_host_name(
    shown: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "evosearch-night-of-the-long-experiments-7f9c6d5b8-abcde"
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    holder = f"process 77 on {name if shown is not this_host else this_host()}, since 2026-01-01T00:00:00+00:00"
    assert _process(holder, "night") == 77
    monkeypatch.setattr(socket, "gethostname", lambda: name.replace("abcde", "fghij"))
    with pytest.raises(LedgerError, match=r"night: it is run by process 77 on .*Stop it there"):
        _process(holder, "night")
