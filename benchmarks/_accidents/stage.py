"""Where one scenario plays: a folder, a ledger, Ray nodes, and the search's own process; and what came of it."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks._accidents.nodes import HEAD, Nodes
from benchmarks._accidents.record import Record, events_of
from benchmarks._light_workers.driver import SEARCH
from evosearch.devcluster.processes import last_lines, launch
from evosearch.errors import LedgerError, SearchError
from evosearch.search.ledger.events import Event

END_S = 240.0  # for a search to come to its end, or to where a fault is due
LOOK_S = 0.1
REASON = 160  # characters of one that are shown


class NotHere(Exception):  # noqa: N818 (nothing is wrong)
    """This machine does not have what a scenario takes; says what."""


@dataclass(frozen=True)
class Finding:
    """What a scenario came to.

    Attributes:
        happened: what was done to the search, with numbers.
        reasons: as they are on record, and where.
        problems: why it has not passed; none where it has.
    """

    happened: str
    record: Record
    reasons: tuple[str, ...]
    problems: tuple[str, ...]


class Program:
    """A process in a session of its own; what it says is appended to a log."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> None:
        self.log = log
        self._popen, self._session = launch(command, environment, folder, log)

    @property
    def running(self) -> bool:
        return self._popen.poll() is None

    def kill(self) -> None:
        """SIGKILL to it and all that it started."""
        self._session.kill()
        self._popen.wait()

    def wait(self, within_s: float = END_S) -> int:
        """Its exit code.

        Raises:
            SearchError: it does not end.
        """
        try:
            return self._popen.wait(within_s)
        except subprocess.TimeoutExpired:
            raise SearchError(f"it has not ended after {within_s:.0f} s:\n{last_lines(self.log)}") from None

    def said(self) -> str:
        return self.log.read_text(errors="replace")


class Stage:
    """One scenario's folder, and what runs in it. The search is `benchmarks._light_workers.driver`'s."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o711)  # PostgreSQL's user has to pass it
        self.folder = folder
        self.ledger, self.search = f"sqlite:///{folder / 'ledger.db'}", SEARCH
        self.nodes: Nodes | None = None
        self.driver: Program | None = None
        self._settings: dict[str, Any] = {}
        self._environment: dict[str, str] = {}

    def up(self, **cpus: int) -> Nodes:
        """Start a head and nodes with so many CPUs, which is so many workers; the head has none unless it is named."""
        self.nodes = Nodes(self.folder)
        self.nodes.add(HEAD, cpus.pop(HEAD, 0))
        for name, count in cpus.items():
            self.nodes.add(name, count)
        return self.nodes

    def drive(self, candidates: int, seconds: float, environment: Mapping[str, str] | None = None, **more: Any) -> None:
        """Start the search; `more` as in `_soak.driver.Settings`."""
        assert self.nodes is not None
        where = {"ledger": self.ledger, "tracking": None, "address": self.nodes.address, "folder": str(self.folder)}
        self._settings = where | {"candidates": candidates, "seconds": seconds} | more
        self._environment = dict(environment or {})
        self.again()

    def again(self) -> None:
        """Start the same search again: it goes on."""
        assert self.nodes is not None
        command = [sys.executable, "-m", "benchmarks._light_workers.driver", json.dumps(self._settings)]
        environment = self.nodes.environment() | self._environment
        self.driver = Program(command, environment, self.folder, self.folder / "driver.log")

    @property
    def candidates(self) -> int:
        return int(self._settings["candidates"])

    def events(self) -> list[Event]:
        try:
            return events_of(self.ledger, self.search)
        except LedgerError:  # its server is away
            return []

    def scored(self) -> int:
        return sum(event.type == "scored" for event in self.events())

    def begun(self) -> list[tuple[str, str]]:
        """Job id and worker's process id of every job that was begun, in order."""
        lines = (self.folder / "begun").read_text().splitlines()
        return [(job, pid) for job, _, pid in (line.partition(" ") for line in lines)]

    def until(self, done: Callable[[], bool], what: str, within_s: float = END_S) -> None:
        """Wait while the search runs.

        Raises:
            SearchError: it ended, or time ran out, before.
        """
        assert self.driver is not None
        deadline = time.monotonic() + within_s
        while not done():
            if not self.driver.running or time.monotonic() > deadline:
                why = "after so long" if self.driver.running else "and the search has ended"
                raise SearchError(f"not {what}, {why}:\n{last_lines(self.driver.log)}")
            time.sleep(LOOK_S)

    def until_scored(self, count: int) -> None:
        self.until(lambda: self.scored() >= count, f"{count} candidates scored")

    def finish(self) -> None:
        """Wait for the search to end well."""
        assert self.driver is not None
        if code := self.driver.wait():
            raise SearchError(f"the search ended with {code}:\n{last_lines(self.driver.log)}")

    def end(self) -> None:
        if self.driver is not None:
            self.driver.kill()
        if self.nodes is not None:
            self.nodes.end()


def conclude(
    happened: str,
    record: Record,
    retried: str | None = None,
    failed: Mapping[str, str] | None = None,
    more: Sequence[str] = (),
    reasons: Sequence[str] = (),
    least: int = 1,
) -> Finding:
    """Hold a record against what it must be.

    Args:
        retried: a pattern that every reason of a candidate that was scored again begins with; None: none was.
        least: candidates that were scored again, where some were.
        failed: candidate → pattern of its reason, of those that fail, and nobody else does.
        more: other problems.
        reasons: other reasons, that are not in the ledger.
    """
    problems = [f"lost: {name}" for name in record.lost] + list(record.doubled) + list(record.broken) + list(more)
    problems += _other_reasons(record, retried, failed or {})
    if retried is not None and len(record.retried) < least:
        problems.append(f"on record is that {len(record.retried)} were scored again, not {least}")
    known = [*(reason for _, reason in record.retried), *(reason for _, reason in record.failed), *reasons]
    shown = tuple(dict.fromkeys(reason[:REASON] for reason in known))
    return Finding(happened, record, shown, tuple(problems))


def _other_reasons(record: Record, retried: str | None, failed: Mapping[str, str]) -> list[str]:
    problems = [
        f"candidate {name} was scored again: {reason}"
        for name, reason in record.retried
        if retried is None or not re.match(retried, reason)
    ]
    there = dict(record.failed)
    problems += [f"candidate {name} has not failed" for name in failed.keys() - there.keys()]
    for name, reason in there.items():
        if name not in failed or not re.match(failed[name], reason):
            problems.append(f"candidate {name} failed: {reason}")
    return problems
