"""A search with its ledger on PostgreSQL equals one with a SQLite ledger, also after kills and lost connections."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from evosearch.errors import LedgerError
from evosearch.reporting.status import of_ledger
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Progress, Silent
from evosearch.service.run import run
from evosearch.spec.lookup import recorded_names
from evosearch.spec.spec import load_spec

if TYPE_CHECKING:
    from evosearch.devcluster.postgres import Postgres

World = Callable[..., Path]
# Between two runs of one search: times and workers; the count of openings; folders.
MAY_DIFFER = ("seconds", "worker", "count", "recipe")
BUDGET = {"candidates": 12}
KINDS = ("baseline", "asked", "scored", "told", "finalist", "test_opened", "gated", "failed")


def record(spec: Path) -> dict[str, list[Any]]:
    """Proposals, scores and reports of a search in order, and every score of every item."""
    run_dir = load_spec(spec).run_dir
    found: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        info = ledger.search_by_name(run_dir.name)
        assert info is not None
        events = ledger.events(info.search_id)
        assert [event.seq for event in events] == list(range(1, len(events) + 1))
        for event in events:
            if event.type in found:
                found[event.type].append({key: value for key, value in event.payload.items() if key not in MAY_DIFFER})
        found["scored"].sort(key=lambda payload: (payload["split"], payload["candidate"]))
        found["items"] = [
            {task: {name: values.tolist() for name, values in columns.items()} for task, columns in scored.items()}
            for payload in found["scored"]
            for scored in [ledger.columns(info.search_id, payload["candidate"], payload["split"])]
        ]
    return found


@pytest.fixture(scope="module")
def in_a_file() -> dict[str, Any]:
    return {}


@pytest.fixture
def expected(world: World, in_a_file: dict[str, Any]) -> dict[str, Any]:
    if not in_a_file:
        spec = world(name="night", budget=BUDGET)
        run(spec, Silent())
        in_a_file.update(record(spec))
    return in_a_file


class Cutting(Silent):
    """Cuts the search's connections to its ledger, and stops it in the middle."""

    def __init__(self, cut: Callable[[], int], stop_at: int | None) -> None:
        self.cut, self.stop_at = cut, stop_at
        self.notes: list[str] = []
        self.cuts = 0

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, progress: Progress) -> None:
        if self.cuts < 6:
            self.cuts += bool(self.cut())
        if progress.stage == "search" and self.stop_at is not None and progress.done >= self.stop_at:
            raise KeyboardInterrupt


def test_stopped_continued_and_cut_off_it_is_the_same_search(
    world: World, expected: dict[str, Any], postgres: "Postgres", postgres_url: str, evosearch: Callable[..., Any]
) -> None:
    assert recorded_names(postgres_url) == [], "an empty database can be listed"
    spec = world(name="night", ledger=postgres_url, budget=BUDGET)

    def cut() -> int:
        return postgres.drop_connections(postgres_url.rsplit("/", 1)[1])

    with pytest.raises(KeyboardInterrupt):
        run(spec, Cutting(cut, stop_at=4))
    (row,) = of_ledger(postgres_url)
    assert (row.state, row.held_by) == ("stopped: interrupted", None)
    watcher = Cutting(cut, stop_at=None)
    report = run(spec, watcher)
    assert report.candidates.proposed == 12
    assert record(spec) == expected
    assert recorded_names(postgres_url) == ["night"]
    assert sum("back after" in note for note in watcher.notes) >= 3, watcher.notes
    run_dir = load_spec(spec).run_dir
    with postgres.connect(postgres_url.rsplit("/", 1)[1]) as connection:
        openings = connection.execute("SELECT search_id FROM ledger_test_openings").fetchall()
    assert openings == [(report.search_id,)], "a database that searches share counts openings itself"
    code, shown, _ = evosearch("leaderboard", spec, "--json")
    assert code == 0
    assert len(json.loads(shown)["rows"]) >= 12
    written = run_dir.folder / "third.yaml"
    code, _, err = evosearch("export", spec, "--candidate", "3", "--output", written)
    assert code == 0, err
    assert "merge_method: task_arithmetic" in written.read_text()


def test_killed_and_kept_from_being_run_twice(
    world: World, expected: dict[str, Any], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = world(name="night", ledger=postgres_url, budget=BUDGET)
    command = [sys.executable, "-m", "evosearch.cli.main", "run", str(spec)]
    first = subprocess.Popen(
        command, env=dict(os.environ), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert first.stderr is not None
    try:
        deadline = time.monotonic() + 120.0
        while time.monotonic() < deadline and first.poll() is None:
            try:
                (row,) = of_ledger(postgres_url)
                if row.finished >= 3:
                    break
            except (LedgerError, ValueError):  # no ledger yet, no search yet
                pass
            time.sleep(0.05)
        os.kill(first.pid, signal.SIGSTOP)
        assert first.poll() is None, first.stderr.read()
        (row,) = of_ledger(postgres_url)
        assert row.state == "running"
        assert str(row.held_by).startswith(f"process {first.pid} on ")
        with pytest.raises(LedgerError, match=rf"night.yaml: ledger: .* being run by process {first.pid} on"):
            run(spec, Silent())
    finally:
        first.kill()
        first.communicate()
    report = run(spec, Silent())
    assert not list(load_spec(spec).run_dir.folder.glob("*.db*")), "nothing of the ledger lies in the folder of runs"
    assert 3 <= report.candidates.resumed < 12
    assert record(spec) == expected
