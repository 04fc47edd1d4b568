"""Upkeep of ledgers: verify one, copy it while a search runs, and recover what is intact in a damaged file."""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa

from evosearch.errors import InputError, LedgerError, LedgerUnavailableError, ReplayError
from evosearch.evaluation.harness.harness import Harness
from evosearch.search.ledger import backup as copies
from evosearch.search.ledger import store
from evosearch.search.ledger.database_errors import FREE_DISK_SPACE, damaged, shown
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.ledger.lock import file_lock, lockers
from evosearch.search.ledger.salvage import Salvage, SalvagedSearch
from evosearch.search.ledger.verify import Verified, VerifiedSearch
from evosearch.search.ledger.verify import verify as verify_rows
from evosearch.search.progress import Watcher
from evosearch.search.protocols import Job, Outcome
from evosearch.search.recorder import Recorder
from evosearch.service import phases
from evosearch.setup.loading import recorded_winner
from evosearch.setup.prepare import prepare
from evosearch.setup.resume_check import refuse_other_search
from evosearch.spec.lookup import ledger_of, recorded_names
from evosearch.spec.own_names import DAMAGED
from evosearch.spec.spec import SearchSpec, Winner
from evosearch.spec.stages import load

SPEC = (".yaml", ".yml")
RECOVERY = "recovery"  # of the lock that a recovery in place holds


@dataclass(frozen=True)
class Replayed:
    """A search whose optimizer proposed what the ledger has, or did not.

    Attributes:
        name: The search.
        proposals: Number of proposals compared.
        problem: The first difference; None if there is none.
    """

    name: str
    proposals: int
    problem: str | None = None


@dataclass(frozen=True)
class VerifyReport:
    """Contents of a ledger and its problems.

    Attributes:
        ledger: URL.
        ok: Whether there is no problem.
        searches: The searches, with their problems.
        item_sets: Number of item sets.
        test_openings: Number of test openings.
        problems: Problems that belong to no search.
        replayed: The searches of the spec file that was given; empty for a name or a ledger.
    """

    ledger: str
    ok: bool
    searches: tuple[VerifiedSearch, ...]
    item_sets: int
    test_openings: int
    problems: tuple[str, ...]
    replayed: tuple[Replayed, ...] = ()


@dataclass(frozen=True)
class BackupReport:
    """A copy of a ledger, which was verified."""

    ledger: str
    out: str
    searches: int
    events: int
    bytes: int


@dataclass(frozen=True)
class RecoverReport:
    """A new ledger with what is intact in a damaged one.

    Attributes:
        ledger: The damaged file.
        out: The new file.
        kept: The damaged files, if the new one took their place.
        searches: The searches that were found.
        item_sets: Number of item sets.
        test_openings: Number of test openings.
    """

    ledger: str
    out: str
    kept: tuple[str, ...]
    searches: tuple[SalvagedSearch, ...]
    item_sets: int
    test_openings: int


class NoWorkers:
    """An executor without workers, for a search that is replayed and not continued."""

    slots = 0

    def submit(self, job: Job) -> None:
        """Refuse the job: a replay scores nothing."""
        raise AssertionError(f"{job.id} would be scored")

    def wait(self, timeout_s: float) -> list[Outcome]:
        """Return no outcomes."""
        return []

    def close(self) -> None:
        """Do nothing: there are no workers."""


def verify(search: str, watcher: Watcher, allow_pickle: bool = False) -> VerifyReport:
    """Verify a ledger, also while a search writes to it.

    Args:
        search: A search or a ledger; see `ledger_of`. With a spec file, its searches are also replayed.
        watcher: Shows progress and notes.
        allow_pickle: Read pickled weights of models without safetensors.

    Raises:
        LedgerError: There is no such ledger, or it cannot be opened.
        InputError: The spec, or a model that a replay needs, is wrong.
    """
    url = ledger_of(search)
    with Ledger.open(url, search, read_only=True) as ledger:
        found = ledger.snapshot(verify_rows)
        name = shown(ledger.url)
    replayed = tuple(_replayed(Path(search), watcher, allow_pickle)) if found.ok and search.endswith(SPEC) else ()
    ok = found.ok and not any(one.problem for one in replayed)
    searches = tuple(sorted(found.searches, key=lambda one: one.name))
    return VerifyReport(name, ok, searches, found.item_sets, found.test_openings, tuple(found.problems), replayed)


def _replayed(path: Path, watcher: Watcher, allow_pickle: bool) -> Iterator[Replayed]:
    """Replay the recorded searches of a spec."""
    spec = load(path)
    if isinstance(spec, SearchSpec):
        if spec.name in recorded_names(spec.run_dir.ledger):
            yield _replay(spec, watcher, allow_pickle, Harness(spec.suite))
        return
    harness = Harness(spec.suite)
    winners: dict[str, Winner] = {}
    for index, stage in enumerate(spec.config.stages):
        if spec.search_name(index) not in recorded_names(spec.run_dir(index).ledger):
            return
        one = spec.stage(index, winners)
        yield _replay(one, watcher, allow_pickle, harness)
        if index < spec.count - 1:
            later = [spec.search_name(other) for other in range(index + 1, spec.count)]
            if not set(later) & set(recorded_names(spec.run_dir(index).ledger)):
                return
            winners[stage.name] = recorded_winner(one)


def _replay(spec: SearchSpec, watcher: Watcher, allow_pickle: bool, harness: Harness) -> Replayed:
    prepared = prepare(spec, watcher, allow_pickle, harness)
    with Ledger.open(spec.run_dir.ledger, f"{spec.file}: ledger", read_only=True) as ledger:
        prepared = prepared.resumed(refuse_other_search(ledger, prepared))
        recorder = Recorder(ledger, prepared.search_id)
        try:
            return Replayed(spec.name, phases.controller_of(prepared, recorder, NoWorkers()).replay())
        except ReplayError as exc:
            return Replayed(spec.name, 0, str(exc))


def backup(search: str, out: Path) -> BackupReport:
    """Copy a ledger to a new SQLite file, also while a search writes to it, and verify the copy.

    Args:
        search: A search or a ledger; see `ledger_of`.
        out: The file to write.

    Raises:
        LedgerError: There is no such ledger, or it is damaged.
        InputError: `out` exists, or cannot be written.
    """
    with Ledger.open(ledger_of(search), search, read_only=True) as ledger, _writing(out) as draft:
        copy = copies.copy_file if store.sqlite_path(ledger.url) is not None else copies.copy_rows
        ledger.snapshot(lambda connection: copy(connection, _emptied(draft)))
        found = _verified(draft)
        if not found.ok:
            problems = [*found.problems, *(text for one in found.searches for text in one.problems)]
            raise damaged(ledger.url, search, problems[0])
        source = shown(ledger.url)
    events = sum(one.events for one in found.searches)
    return BackupReport(source, str(out), len(found.searches), events, out.stat().st_size)


def recover(search: str, out: Path | None) -> RecoverReport:
    """Write a new ledger with what is intact in a damaged SQLite file and can be continued from.

    Args:
        search: A search or a ledger; see `ledger_of`.
        out: The file to write; None puts the new ledger in the place of the damaged one, whose files are renamed.

    Raises:
        LedgerError: There is no such ledger, it is on a server, another process uses it, or nothing is intact.
        InputError: `out` exists, or cannot be written.
    """
    url = store.parse_url(ledger_of(search), search)
    database = store.sqlite_path(url)
    if database is None:
        next = "Restore a backup of the database"
        raise LedgerError(search, f"{shown(url)} is on a server", "An SQLite file", next)
    if not database.is_file():
        raise LedgerError(search, f"no ledger at {database}", next="Check the path")
    if used_by := lockers(database):
        what = f"{database} is in use by {' and '.join(used_by)}"
        raise LedgerUnavailableError(search, what, next="Stop it first")
    with file_lock(database, RECOVERY, search):
        found = Salvage.read(database)
        if not found.events:
            raise LedgerError(search, f"{database} has no intact event", next="Restore a backup")
        kept = _damaged_files(database) if out is None else {}
        target = out or database
        with _writing(target, replace=out is None) as draft:
            searches = _write(found, draft)
            for old, new in kept.items():
                os.rename(old, new)
    names = tuple(str(name) for name in kept.values())
    openings = len(found.openings)
    return RecoverReport(str(database), str(target), names, tuple(searches), len(found.item_sets), openings)


def _write(found: Salvage, draft: Path) -> list[SalvagedSearch]:
    engine = sa.create_engine(f"sqlite:///{_emptied(draft)}")
    try:
        with engine.begin() as connection:
            store.create_tables(connection)
            return found.write(connection)
    finally:
        engine.dispose()


def _damaged_files(database: Path) -> dict[Path, Path]:
    """Return the files of a damaged ledger, each with its new name.

    Raises:
        LedgerError: A file of that name exists.
    """
    files = [database.with_name(f"{database.name}{suffix}") for suffix in ("", "-wal", "-shm")]
    found = {file: file.with_name(f"{file.name}{DAMAGED}") for file in files if file.exists()}
    for file in found.values():
        if file.exists():
            what = "left by an earlier recovery"
            raise LedgerError(str(file), what, next="Move it to another place, or pass -o FILE")
    return found


def _verified(database: Path) -> Verified:
    with Ledger.open(f"sqlite:///{database}", str(database), read_only=True) as copy:
        return copy.snapshot(verify_rows)


def _emptied(draft: Path) -> Path:
    draft.unlink(missing_ok=True)  # a server's snapshot is taken again after a lost connection
    return draft


@contextmanager
def _writing(out: Path, replace: bool = False) -> Iterator[Path]:
    """Yield a file to write, which gets its name once the block succeeds.

    Raises:
        InputError: `out` exists, or the file cannot be written.
    """
    if out.exists() and not replace:
        raise InputError(str(out), "already exists", next="Choose another file")
    draft = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        yield draft
        os.replace(draft, out)
    except (OSError, sqlite3.OperationalError, sa.exc.OperationalError) as exc:  # the middle one of a copy of pages
        what = f"cannot be written: {getattr(exc, 'strerror', None) or getattr(exc, 'orig', exc)}"
        raise LedgerUnavailableError(str(out), what, next=FREE_DISK_SPACE) from None
    finally:
        for suffix in ("", "-journal", "-wal", "-shm"):
            draft.with_name(f"{draft.name}{suffix}").unlink(missing_ok=True)
