"""A closed terminal ends a search on record, as SIGTERM does; under nohup the search continues."""

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from evosearch.search.ledger.database_errors import NoLedgerError
from evosearch.search.ledger.ledger import Ledger

pytestmark = pytest.mark.slow
World = Callable[..., Path]
LONG_S = 600.0  # limit of each wait, on a busy machine


def scored(ledger: Path) -> int:
    """The number of scores on record; 0 before the ledger exists."""
    with suppress(NoLedgerError), Ledger.open(f"sqlite:///{ledger}", read_only=True) as opened:
        return sum(len(opened.events(info.search_id, types=["scored"])) for info in opened.searches())
    return 0


def wait_for(ledger: Path, count: int, process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + LONG_S
    while scored(ledger) < count:
        assert process.poll() is None, "the search has ended"
        assert time.monotonic() < deadline
        time.sleep(0.2)


def ended(ledger: Path) -> str | None:
    with Ledger.open(f"sqlite:///{ledger}", read_only=True) as opened:
        (info,) = opened.searches()
        assert opened.holder(info.search_id) is None
        return info.stopped


def test_a_closed_terminal_ends_the_search_on_record(world: World, tmp_path: Path) -> None:
    spec, ledger = world(budget={"candidates": 100_000}), tmp_path / "runs" / "world" / "ledger.db"
    master, slave = pty.openpty()

    def own_terminal() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
        os.setsid()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)

    command = [sys.executable, "-m", "evosearch.cli.main", "run", str(spec)]
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, preexec_fn=own_terminal, env=dict(os.environ)
    )
    os.close(slave)
    shown: list[bytes] = []

    def read() -> None:
        with suppress(OSError):  # the program has ended, and with it the terminal
            while not closing.is_set():
                shown.append(os.read(master, 4096))

    closing = threading.Event()
    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        wait_for(ledger, 8, process)
        closing.set()
        reader.join(30.0)  # the bar is drawn several times a second
        assert b"baselines" in b"".join(shown), "it has drawn its bar on this terminal"
        os.close(master)
        assert process.wait(LONG_S) == 130
    finally:
        process.kill()
        process.wait()
    assert ended(ledger) == "interrupted"
    assert not list(ledger.parent.glob("*.lock"))


def test_sighup_is_ignored_under_nohup_and_closed_pipes_are_no_failure(world: World, tmp_path: Path) -> None:
    """`nohup evosearch run SPEC 2>&1 | head -1 &`, then logout."""
    spec, ledger = world(budget={"candidates": 100_000}), tmp_path / "runs" / "world" / "ledger.db"
    command = ["nohup", sys.executable, "-m", "evosearch.cli.main", "run", str(spec), "--progress", "json"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=dict(os.environ))
    assert process.stderr is not None
    try:
        wait_for(ledger, 4, process)
        process.stderr.close()
        process.send_signal(signal.SIGHUP)
        wait_for(ledger, scored(ledger) + 12, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(LONG_S) == 130
    finally:
        process.kill()
        process.wait()
    assert ended(ledger) == "interrupted"
