"""Trackers and model registry, built from a spec's `tracking`."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from evosearch.errors import SpecError
from evosearch.redaction import hidden
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Watcher
from evosearch.spec.run_dir import RunDir
from evosearch.spec.spec import SearchSpec
from evosearch.tracking.client import mirrored_in, sqlite_file
from evosearch.tracking.jsonl import JsonLinesTracker
from evosearch.tracking.mirror import Mirror
from evosearch.tracking.mlflow import MlflowMirror
from evosearch.tracking.model_registry import Registry
from evosearch.tracking.view import leaderboard_path

CATCH_UP_S = 120.0  # wait for the mirror: for the winner's run, and again at the end
PATIENCE_S = 10.0  # wait for a failing store
INTERRUPTED_S = 5.0  # limit of both for an interrupted run, which may be killed soon
UI_PORT = 5000  # default of `evosearch ui`
JSON_LINES = "jsonl:"  # `jsonl:events.jsonl`: a file in the run directory instead of an MLflow store


@contextmanager
def mirroring(run_dir: RunDir, search_id: str, watcher: Watcher) -> Iterator[Mirror]:
    """The mirror of a search. On exit it gets some time to catch up; the next run writes the rest."""

    def notice(text: str) -> None:
        watcher.note(f"{shown(run_dir)}: {text}")

    reader = partial(Ledger.open, run_dir.ledger, read_only=True)
    mirror: Mirror
    if run_dir.tracking.startswith(JSON_LINES):
        mirror = JsonLinesTracker(jsonl_file(run_dir), reader, search_id, notice)
    else:
        where = run_dir.tracking, run_dir.experiment

        def announce(path: str) -> None:
            before = "" if run_dir.tracking.startswith("http") else f"evosearch ui {run_dir.name} shows it at "
            watcher.note(f"leaderboard: {before}{leaderboard_address(run_dir, path)}")

        mirror = MlflowMirror(*where, reader, search_id, run_dir.name, notice, announce)
    catch_up_s = CATCH_UP_S
    try:
        yield mirror
    except KeyboardInterrupt:
        catch_up_s = INTERRUPTED_S
        raise
    finally:
        mirror.close(catch_up_s, min(catch_up_s, PATIENCE_S))


def leaderboard_address(run_dir: RunDir, path: str, port: int = UI_PORT) -> str:
    """The address of a search's leaderboard: on its tracking server, or on the one that `evosearch ui` starts.

    Args:
        run_dir: Run directory of the search.
        path: Address below that of the server; see `tracking.view`.
        port: Port of `evosearch ui`.
    """
    if run_dir.tracking.startswith("http"):
        return f"{hidden(run_dir.tracking).rstrip('/')}/{path}"
    return f"http://127.0.0.1:{port}/{path}"


def leaderboard_of_search(run_dir: RunDir, port: int = UI_PORT) -> str | None:
    """The address of the leaderboard of a search, as far as it is mirrored; None before.

    Raises:
        TrackingError: The tracking store cannot be read.
    """
    if run_dir.tracking.startswith(JSON_LINES):
        return None
    found = mirrored_in(run_dir.tracking, run_dir.experiment, run_dir.name)
    return leaderboard_address(run_dir, leaderboard_path(*found), port) if found else None


def jsonl_file(run_dir: RunDir) -> Path:
    """The JSON lines file of a run directory."""
    return run_dir.folder / run_dir.tracking.removeprefix(JSON_LINES)


def tracking_file(run_dir: RunDir) -> Path | None:
    """The file of a tracking store, its links resolved; None for a server."""
    if run_dir.tracking.startswith(JSON_LINES):
        return jsonl_file(run_dir).resolve()
    return sqlite_file(run_dir.tracking)


def shown(run_dir: RunDir) -> str:
    """The tracking store in messages: `MLflow at http://host:5000`."""
    if run_dir.tracking.startswith(JSON_LINES):
        return str(jsonl_file(run_dir))
    return f"MLflow at {hidden(run_dir.tracking)}"


def invitation(run_dir: RunDir) -> str:
    """Where to look at a search: its file of JSON lines, its MLflow server, or the command that starts one."""
    if run_dir.tracking.startswith(JSON_LINES):
        return f"its events: {jsonl_file(run_dir)}"
    if run_dir.tracking.startswith("http"):
        return f"see it in MLflow: {hidden(run_dir.tracking)}"
    return f"see it in MLflow: evosearch ui {run_dir.name}"


def registry_of(run_dir: RunDir) -> Registry | None:
    """The registry of the tracking store; None for JSON lines."""
    return None if run_dir.tracking.startswith(JSON_LINES) else Registry(run_dir.tracking)


def check_tracking(spec: SearchSpec) -> None:
    """Check that `tracking` and `promotion` are consistent.

    Raises:
        SpecError: `register_as` is given without a registry.
    """
    if not (spec.config.tracking.uri or "").startswith(JSON_LINES):
        return
    if spec.config.promotion.register_as:
        where = f"{spec.file}: promotion.register_as"
        raise SpecError(where, "JSON lines have no model registry", "An MLflow tracking.uri", "Remove one of the two")
