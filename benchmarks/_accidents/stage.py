"""Environment of one scenario (folder, ledger, Ray nodes, search process) and its result."""

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

END_S = 240.0  # time limit for a search to end, or to reach the point of the fault
POLL_S = 0.1
REASON = 160  # maximum length of a reason in the table


class UnavailableError(Exception):
    """A scenario cannot run on this machine."""


@dataclass(frozen=True)
class ScenarioResult:
    """Result of one scenario.

    Attributes:
        happened: The injected fault, with numbers.
        record: State of the ledger afterwards.
        reasons: Recorded reasons of retries and failures.
        problems: Reasons why the scenario failed; empty if it passed.
    """

    happened: str
    record: Record
    reasons: tuple[str, ...]
    problems: tuple[str, ...]


class Program:
    """Process in its own session whose output is appended to a log."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path) -> None:
        self.log = log
        self._popen, self._session = launch(command, environment, folder, log)

    @property
    def running(self) -> bool:
        """Whether the process has not ended."""
        return self._popen.poll() is None

    def kill(self) -> None:
        """Send SIGKILL to the process and all processes that it started."""
        self._session.kill()
        self._popen.wait()

    def wait(self, within_s: float = END_S) -> int:
        """Wait for the exit code.

        Raises:
            SearchError: The process did not end in time.
        """
        try:
            return self._popen.wait(within_s)
        except subprocess.TimeoutExpired:
            raise SearchError(f"the process did not end within {within_s:.0f} s:\n{last_lines(self.log)}") from None

    def said(self) -> str:
        """Output of the process so far."""
        return self.log.read_text(errors="replace")


class Stage:
    """Folder of one scenario and the processes in it; the search is that of `benchmarks._light_workers.driver`."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o711)  # PostgreSQL's user must be able to traverse it
        self.folder = folder
        self.ledger, self.search = f"sqlite:///{folder / 'ledger.db'}", SEARCH
        self.nodes: Nodes | None = None
        self.driver: Program | None = None
        self._settings: dict[str, Any] = {}
        self._environment: dict[str, str] = {}

    def up(self, **cpus: int) -> Nodes:
        """Start a head and nodes; `cpus` maps the name of a node to its number of CPUs and workers (0 for the head)."""
        self.nodes = Nodes(self.folder)
        self.nodes.add(HEAD, cpus.pop(HEAD, 0))
        for name, count in cpus.items():
            self.nodes.add(name, count)
        return self.nodes

    def drive(self, candidates: int, seconds: float, environment: Mapping[str, str] | None = None, **more: Any) -> None:
        """Start the search; `more` has other fields of `driver.Settings`."""
        assert self.nodes is not None
        where = {"ledger": self.ledger, "tracking": None, "address": self.nodes.address, "folder": str(self.folder)}
        self._settings = where | {"candidates": candidates, "seconds": seconds} | more
        self._environment = dict(environment or {})
        self.again()

    def again(self) -> None:
        """Start the same search again, to resume it."""
        assert self.nodes is not None
        command = [sys.executable, "-m", "benchmarks._light_workers.driver", json.dumps(self._settings)]
        environment = self.nodes.environment() | self._environment
        self.driver = Program(command, environment, self.folder, self.folder / "driver.log")

    @property
    def candidates(self) -> int:
        """Budget of the search."""
        return int(self._settings["candidates"])

    def events(self) -> list[Event]:
        """Events so far; empty while the ledger's server is down."""
        try:
            return events_of(self.ledger, self.search)
        except LedgerError:
            return []

    def scored(self) -> int:
        """Number of scored candidates so far."""
        return sum(event.type == "scored" for event in self.events())

    def begun(self) -> list[tuple[str, str]]:
        """Job id and worker's process id of every started job, in order."""
        lines = (self.folder / "begun").read_text().splitlines()
        return [(job, pid) for job, _, pid in (line.partition(" ") for line in lines)]

    def until(self, done: Callable[[], bool], what: str, within_s: float = END_S) -> None:
        """Wait for a condition while the search runs.

        Args:
            done: The condition.
            what: The condition as a participle phrase, for the error.
            within_s: Time limit in seconds.

        Raises:
            SearchError: The search ended or time ran out first.
        """
        assert self.driver is not None
        deadline = time.monotonic() + within_s
        while not done():
            if not self.driver.running or time.monotonic() > deadline:
                why = f"within {within_s:.0f} s" if self.driver.running else "before the search ended"
                raise SearchError(f"not {what} {why}:\n{last_lines(self.driver.log)}")
            time.sleep(POLL_S)

    def until_scored(self, count: int) -> None:
        """Wait until this many candidates are scored."""
        self.until(lambda: self.scored() >= count, f"at {count} scored candidates")

    def finish(self) -> None:
        """Wait for the search to end.

        Raises:
            SearchError: It failed or did not end in time.
        """
        assert self.driver is not None
        if code := self.driver.wait():
            raise SearchError(f"the search ended with exit code {code}:\n{last_lines(self.driver.log)}")

    def end(self) -> None:
        """Kill all processes of the scenario."""
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
) -> ScenarioResult:
    """Compare the ledger with the requirements of a scenario.

    Args:
        happened: The injected fault.
        record: State of the ledger afterwards.
        retried: Pattern that the reason of every retry must match; None if there must be no retries.
        failed: Candidate → pattern of its reason, for all candidates that must fail.
        more: Additional problems.
        reasons: Additional reasons, from sources other than the ledger.
        least: Minimum number of retries, if `retried` is given.
    """
    problems = [f"lost: {name}" for name in record.lost] + list(record.duplicated) + list(record.broken) + list(more)
    problems += _unexpected_reasons(record, retried, failed or {})
    if retried is not None and len(record.retried) < least:
        problems.append(f"{len(record.retried)} retries are recorded, expected at least {least}")
    known = [*(reason for _, reason in record.retried), *(reason for _, reason in record.failed), *reasons]
    shown = tuple(dict.fromkeys(reason[:REASON] for reason in known))
    return ScenarioResult(happened, record, shown, tuple(problems))


def _unexpected_reasons(record: Record, retried: str | None, failed: Mapping[str, str]) -> list[str]:
    problems = [
        f"candidate {name} was retried: {reason}"
        for name, reason in record.retried
        if retried is None or not re.match(retried, reason)
    ]
    recorded = dict(record.failed)
    problems += [f"candidate {name} did not fail" for name in failed.keys() - recorded.keys()]
    for name, reason in recorded.items():
        if name not in failed or not re.match(failed[name], reason):
            problems.append(f"candidate {name} failed: {reason}")
    return problems
