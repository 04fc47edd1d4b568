"""Two processes on one search: the second exits with an error that names the first, which continues."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from evosearch.reporting.report import CandidateCounts
from evosearch.search.ledger.events import Event
from evosearch.search.progress import Progress, Silent
from evosearch.service.run import run

World = Callable[..., Path]
Events = Callable[[Path], list[Event]]


class Second(Silent):
    """Watcher that runs the same command in another process during the search."""

    def __init__(self, spec: Path, events: Events) -> None:
        self.spec, self.events = spec, events
        self.completed: subprocess.CompletedProcess[str] | None = None

    def update(self, progress: Progress) -> None:
        if progress.stage == "search" and progress.done >= 3 and self.completed is None:
            before = self.events(self.spec)
            command = [sys.executable, "-m", "evosearch.cli.main", "run", str(self.spec)]
            self.completed = subprocess.run(
                command, env=dict(os.environ), capture_output=True, text=True, timeout=300, check=False
            )
            assert self.events(self.spec) == before


def test_the_second_process_is_refused_and_the_first_continues(planted: World, events: Events) -> None:
    spec = planted("shared")
    second = Second(spec, events)
    report = run(spec, second)
    assert second.completed is not None
    assert second.completed.returncode == 2, second.completed.stderr
    assert second.completed.stdout == ""
    found = re.search(
        rf"shared\.yaml: ledger: this search is being run by process {os.getpid()} on "
        rf"{re.escape(socket.gethostname())}, since (\S+)\. Wait for it, or stop it first\.",
        second.completed.stderr,
    )
    assert found, second.completed.stderr
    assert 0 <= (datetime.now().astimezone() - datetime.fromisoformat(found[1])).total_seconds() < 600
    assert "Traceback" not in second.completed.stderr
    assert report.candidates == CandidateCounts(6, 6, 0, 0)
    recorded = events(spec)
    assert sum(event.type == "started" for event in recorded) == 1
    assert sum(event.type == "asked" for event in recorded) == 6
    scored = [(event.payload["candidate"], event.payload["split"]) for event in recorded if event.type == "scored"]
    assert len(scored) == len(set(scored))
