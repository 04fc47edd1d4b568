"""A search interrupted at any moment, even twice or with its server down, records `stopped` at once."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy as sa

from evosearch.search.ledger import transactions, uninterrupted
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Silent
from evosearch.search.recorder import Recorder
from evosearch.service import shutdown
from evosearch.service.run import run
from evosearch.service.shutdown import recorded_end
from evosearch.spec.spec import load_spec

if TYPE_CHECKING:
    from evosearch.devcluster.postgres import Postgres

World = Callable[..., Path]
STARTED: list[tuple[str, dict[str, Any]]] = [("started", {"name": "night", "spec": {}, "resumed": False})]
SOON_S = 20.0  # seconds, on a machine that others use too; without an end it would be 300


class Noting(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(autouse=True)
def terminated() -> Iterator[None]:
    """Handle SIGTERM as an interrupt, as the program's entry point does."""

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    yield
    signal.signal(signal.SIGTERM, before)


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def later(delay_s: float) -> None:
    threading.Timer(delay_s, terminate).start()


def kinds(url: str) -> list[str]:
    with Ledger.open(url, read_only=True) as ledger:
        return [f"{e.type}: {e.payload['reason']}" if e.type == "stopped" else e.type for e in ledger.events("one")]


def ended(url: str, search: Callable[[Recorder], str], watcher: Noting | None = None) -> BaseException | None:
    """The exception that `recorded_end` raises for a search."""
    with Ledger.open(url) as ledger, ledger.acquire("one"):
        recorder = Recorder(ledger, "one", watcher=watcher or Noting())

        def whole() -> tuple[str, None]:
            recorder.record(STARTED)
            return search(recorder), None

        try:
            recorded_end(recorder, whole)
        except (Exception, KeyboardInterrupt) as exc:
            return exc
    return None


def files_of(*modules: ModuleType) -> tuple[str, ...]:
    return tuple(str(module.__file__) for module in modules)


OURS = files_of(
    shutdown, transactions, uninterrupted, sys.modules[Recorder.__module__], sys.modules[Ledger.append.__module__]
)
SQLALCHEMY = files_of(sa.engine.base, sa.pool.base)  # where an interrupt can become another error, or keep a lock


@pytest.mark.parametrize(
    ("files", "ends"), [(OURS, 3), pytest.param(SQLALCHEMY, 2, marks=pytest.mark.slow)], ids=["ours", "sqlalchemy"]
)
def test_an_interrupt_at_any_line_is_recorded(
    files: tuple[str, ...], ends: int, tmp_path: Path, no_power_cuts: None
) -> None:
    """The signal is sent at every line of some files that a complete run executes, one run per line."""

    def traced(at: int, number: int) -> int:
        """Run it, interrupted at its `at`-th line; return the number of lines that it ran."""
        passed = 0

        def trace(frame: FrameType, what: str, _: Any) -> Any:
            nonlocal passed
            if frame.f_code.co_filename not in files:
                return None
            if what == "line":
                passed += 1
                if passed == at:
                    signal.raise_signal(signal.SIGTERM)
            return trace

        url = f"sqlite:///{tmp_path / str(number)}.db"
        with Ledger.open(url) as ledger, ledger.acquire("one"):
            recorder = Recorder(ledger, "one")

            def whole() -> tuple[str, None]:
                recorder.record(STARTED)
                return "candidates", None

            sys.settrace(trace)
            threading.settrace(trace)
            try:
                recorded_end(recorder, whole)
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(None)
                threading.settrace(None)
        found = kinds(url)
        assert found in ([], ["started", "stopped: interrupted"], ["started", "stopped: candidates"]), (at, found)
        seen.add(tuple(found))
        return passed

    seen: set[tuple[str, ...]] = set()
    lines = traced(0, 0)
    for at in range(1, lines + 1):
        traced(at, at)
    assert len(seen) == ends


def test_a_second_interrupt_while_the_first_is_recorded_is_ignored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append, sent = Ledger.append, []

    def interrupted(self: Ledger, search_id: str, entries: Any, scores: Any = ()) -> Any:
        if entries[0][0] == "stopped":
            sent.append(terminate())
        found = append(self, search_id, entries, scores)
        if entries[0][0] == "stopped":
            sent.append(terminate())
        return found

    monkeypatch.setattr(Ledger, "append", interrupted)

    def search(recorder: Recorder) -> str:
        terminate()
        raise AssertionError("not reached")

    url = f"sqlite:///{tmp_path}/ledger.db"
    assert isinstance(ended(url, search), KeyboardInterrupt)
    assert kinds(url) == ["started", "stopped: interrupted"]
    assert len(sent) == 2


def test_an_interrupt_that_python_drops_is_not_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutdown, "AGAIN_S", 0.1)

    def search(recorder: Recorder) -> str:
        try:
            terminate()
        except KeyboardInterrupt:  # as in a finaliser
            time.sleep(0.2)
        terminate()
        raise AssertionError("not reached")

    url = f"sqlite:///{tmp_path}/ledger.db"
    assert isinstance(ended(url, search), KeyboardInterrupt)
    assert kinds(url) == ["started", "stopped: interrupted"]


def test_other_ends_of_a_search_are_recorded(tmp_path: Path) -> None:
    def fails(recorder: Recorder) -> str:
        raise ZeroDivisionError("by nought")

    def exits(recorder: Recorder) -> str:  # as Ray's handler of SIGTERM does, before ours is back
        sys.exit(15)

    failed, left = f"sqlite:///{tmp_path}/failed.db", f"sqlite:///{tmp_path}/left.db"
    assert isinstance(ended(failed, fails), ZeroDivisionError)
    assert not isinstance(signal.getsignal(signal.SIGTERM), shutdown.Interrupt), "it is given back"
    assert kinds(failed) == ["started", "stopped: failed: ZeroDivisionError: by nought"]
    assert isinstance(ended(left, exits), KeyboardInterrupt)
    assert kinds(left) == ["started", "stopped: interrupted"]


@pytest.mark.parametrize("what", ["registry_of", "current_champion", "make_executor", "openings", "mirroring"])
def test_every_step_after_the_start_can_be_interrupted(
    world: World, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Of a real run: where it connects to MLflow and to Ray, and opens the count of openings."""

    def stops(*args: Any, **kwargs: Any) -> Any:
        terminate()

    monkeypatch.setattr(f"evosearch.service.run.{what}", stops)
    spec = world()
    with pytest.raises(KeyboardInterrupt):
        run(spec, Silent())
    with Ledger.open(load_spec(spec).run_dir.ledger, read_only=True) as ledger:
        (info,) = ledger.searches()
        assert [event.type for event in ledger.events(info.search_id)] == ["started", "stopped"]
        assert info.stopped == "interrupted"


def test_without_the_server_it_ends_in_seconds(postgres: "Postgres", postgres_url: str) -> None:
    watcher = Noting()

    def search(recorder: Recorder) -> str:
        postgres.stop()
        later(1.0)
        recorder.record([("asked", {})])  # which waits for the server
        raise AssertionError("not reached")

    began = time.monotonic()
    assert isinstance(ended(postgres_url, search, watcher), KeyboardInterrupt)
    assert time.monotonic() - began < SOON_S
    assert watcher.notes[-1].startswith("cannot record that the search stopped (interrupted): ")
    assert "cannot be reached" in watcher.notes[-1]


def test_with_a_server_that_returns_soon_it_is_recorded(
    postgres: "Postgres", postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transactions, "LAST_S", 60.0)  # to start takes it long where others use the machine, too

    def search(recorder: Recorder) -> str:
        postgres.stop()
        threading.Timer(1.5, postgres.start, kwargs={"durable": False}).start()
        later(0.5)
        later(1.0)
        recorder.record([("asked", {})])
        raise AssertionError("not reached")

    assert isinstance(ended(postgres_url, search), KeyboardInterrupt)
    assert kinds(postgres_url)[-1] == "stopped: interrupted"
    postgres.stop()  # it would be taken for a child of the thread, and end with that
    postgres.start(durable=False, die_with_parent=True)


def test_a_server_that_does_not_answer_is_cut_off(postgres: "Postgres", postgres_url: str) -> None:
    """It keeps the connection and never answers: another client has locked the table."""
    database = postgres_url.rsplit("/", 1)[1]
    with postgres.connect(database) as other:

        def search(recorder: Recorder) -> str:
            other.execute("BEGIN")
            other.execute("LOCK TABLE ledger_events IN ACCESS EXCLUSIVE MODE")
            later(1.0)
            recorder.record([("asked", {})])
            raise AssertionError("not reached")

        watcher = Noting()
        began = time.monotonic()
        assert isinstance(ended(postgres_url, search, watcher), KeyboardInterrupt)
        assert time.monotonic() - began < SOON_S
        assert "cannot record that the search stopped (interrupted): " in watcher.notes[-1]
        other.execute("ROLLBACK")
