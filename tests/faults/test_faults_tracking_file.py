"""MLflow's own database is deleted, or locked by another program, during a search: the search and its record go on."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from evosearch.reporting.report import CandidateCounts
from evosearch.search.ledger.events import Event
from evosearch.service import run as run_module
from evosearch.service.run import run
from evosearch.setup import trackers
from evosearch.tracking import mirror as mirror_module
from evosearch.tracking.mirror import UP_TO_DATE
from tests.faults.saboteur import Saboteur

pytestmark = pytest.mark.slow
World = Callable[..., Path]
Events = Callable[[Path], list[Event]]
Until = Callable[..., None]
CANDIDATES = 6


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mirror_module, "LONGEST_PAUSE_S", 1.0)
    for module in (run_module, trackers):
        monkeypatch.setattr(module, "PATIENCE_S", 2.0)


def recorded(events: list[Event]) -> set[str]:
    return {e.payload["candidate"] for e in events if e.type in ("asked", "baseline") and e.payload.get("recipe")}


def tracking_after_another_run(spec: Path) -> str:
    """Run the same command again, in a process of its own: the first one's mirror may still be at work in this one."""
    command = [sys.executable, "-m", "evosearch.cli.main", "run", str(spec), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(json.loads(done.stdout)["tracking"])


def mirrored(store: Path, experiment: str) -> list[str]:
    """Return the candidates of the runs in the file, past this process's connections to one that was deleted."""
    query = (
        "SELECT tags.value FROM tags JOIN runs USING (run_uuid) JOIN experiments USING (experiment_id)"
        " WHERE experiments.name = ? AND tags.key = 'candidate_id' AND runs.lifecycle_stage = 'active'"
    )
    with closing(sqlite3.connect(store)) as database:
        return [value for (value,) in database.execute(query, (experiment,))]


def check_next_run_mirrors_everything(planted: World, events: Events, store: Path, saboteur: Saboteur) -> None:
    """Check a disturbed search: it is complete, and the same command mirrors every candidate once."""
    spec = planted("night", tracking={}, budget={"candidates": CANDIDATES}, baselines={"scales": []})
    report = run(spec, saboteur)
    assert saboteur.acts == {}
    assert report.candidates == CandidateCounts(CANDIDATES, CANDIDATES, 0, 0)
    assert tracking_after_another_run(spec) == UP_TO_DATE
    found = mirrored(store, "night")
    assert len(found) == len(set(found))
    assert set(found) == recorded(events(spec))


def test_a_deleted_database_is_written_again_by_the_next_run(planted: World, events: Events, tmp_path: Path) -> None:
    store = tmp_path / "runs" / "mlflow.db"

    def delete() -> None:
        for path in store.parent.glob("mlflow.db*"):
            path.unlink()

    check_next_run_mirrors_everything(planted, events, store, Saboteur({3: delete}))


def test_a_locked_database_is_written_once_it_is_free(
    planted: World, events: Events, until: Until, tmp_path: Path
) -> None:
    store = tmp_path / "runs" / "mlflow.db"
    with closing(sqlite3.connect(tmp_path / "other.db", check_same_thread=False)) as other:
        other.isolation_level = None

        def lock() -> None:
            until(store.exists, 400.0)  # an attached file that is missing would be created
            other.execute("ATTACH ? AS store", (str(store),))
            until(lambda: _locks(other), 400.0)

        def free() -> None:
            until(lambda: any("The search continues" in note for note in saboteur.notes), 600.0)
            other.execute("ROLLBACK")

        saboteur = Saboteur({2: lock, 4: free})
        check_next_run_mirrors_everything(planted, events, store, saboteur)


def _locks(connection: sqlite3.Connection) -> bool:
    """Lock all files of a connection against writers; return whether the mirror left them free at this moment."""
    try:
        connection.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        return False
    return True
