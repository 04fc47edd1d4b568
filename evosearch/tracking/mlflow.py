"""The search in MLflow: one run for the search, one below it for every candidate and control.

The only place that imports mlflow, and only when a store is opened: the import takes seconds. Every call names its URI;
the global state of mlflow's fluent API is left alone.

Run ids cannot be chosen, so runs are found by their tags. How far the mirror is stands in a tag of the search's own run,
written after what it claims; what was written beyond it is written again and changes nothing.
"""

import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SADeprecationWarning

from evosearch.errors import TrackingError
from evosearch.search.events import Event
from evosearch.tracking.changes import SEARCH, Changes, Plan, Translator
from evosearch.tracking.mirror import EventReader, Mirror, describe, hide_credentials

CURSOR = "evosearch.mirrored_seq"  # tag of the search's run: every event up to it is mirrored
SEARCH_TAG = "evosearch.search_id"  # tag of the search's run; candidates have `search_id`
PARENT_TAG = "mlflow.parentRunId"
ARTIFACTS = "mlartifacts"  # folder beside a SQLite store
TAG_CHARACTERS, BATCH_TAGS, BATCH_METRICS = 8000, 100, 900  # MLflow's limits on one value and on one request
PAGE = 1000  # runs asked for at once

# Set before mlflow is imported, where the user has not. Without retries of its own every failed request is seen here,
# and a run created by a request whose answer got lost is found by its tags before another is created.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for --json
    "MLFLOW_LOGGING_LEVEL": "ERROR",
}


class MlflowMirror(Mirror):
    """Mirrors a search to MLflow from a thread of its own; a `Tracker`.

    Args:
        uri: of the tracking store: `sqlite:///…/mlflow.db`, `http://host:5000`.
        experiment: created where it does not exist.
        open_reader: opens the ledger for reading, in the mirror's thread.
        name: of the search, shown as its run's name.
    """

    def __init__(
        self, uri: str, experiment: str, open_reader: Callable[[], EventReader], search_id: str, name: str
    ) -> None:
        self._store = MlflowStore(uri, experiment, search_id, name)
        super().__init__(self._store, open_reader, search_id)

    def run_ids(self) -> dict[str, str]:
        """Candidate → MLflow run id, as far as it is mirrored."""
        return {candidate: run_id for candidate, run_id in self._store.runs.copy().items() if candidate != SEARCH}


class MlflowStore:
    """One search's runs in one experiment: the sink of `MlflowMirror`."""

    def __init__(self, uri: str, experiment: str, search_id: str, name: str) -> None:
        self._uri, self._experiment, self._search_id, self._name = uri, experiment, search_id, name
        self._translator = Translator(search_id, name)
        self._client: Any = None
        self._experiment_id = ""
        self.runs: dict[str, str] = {}  # candidate, or SEARCH → run id

    def open(self) -> int:
        self._client = connect(self._uri)
        self._experiment_id = _ensure_experiment(self._client, self._uri, self._experiment)
        self._translator = Translator(self._search_id, self._name)
        self.runs = {}
        found = find_runs(self._client, self._experiment_id, f"tags.`{SEARCH_TAG}` = '{self._search_id}'")
        cursor = 0
        if found:
            parent = self._keep_one(found)
            self.runs[SEARCH] = parent.info.run_id
            cursor = int(parent.data.tags.get(CURSOR, 0))
        by_candidate: dict[str, list[Any]] = {}
        for run in find_runs(self._client, self._experiment_id, f"tags.search_id = '{self._search_id}'"):
            by_candidate.setdefault(run.data.tags.get("candidate_id", ""), []).append(run)
        self.runs |= {name: self._keep_one(twins).info.run_id for name, twins in by_candidate.items() if name}
        return cursor

    def recall(self, events: Sequence[Event]) -> None:
        already: Plan = {}
        for event in events:
            self._translator.translate(event, already)

    def write(self, events: Sequence[Event]) -> None:
        plan: Plan = {}
        for event in events:
            self._translator.translate(event, plan)
        # The search's run comes first, because the others name it.
        self._apply(SEARCH, plan.pop(SEARCH, None) or Changes(round(events[0].time * 1000)))
        for candidate, changes in plan.items():
            self._apply(candidate, changes)
        self._client.set_tag(self.runs[SEARCH], CURSOR, str(events[-1].seq))

    def _apply(self, key: str, changes: Changes) -> None:
        if key != SEARCH:
            changes.tags[PARENT_TAG] = self.runs[SEARCH]
        tags = {name: value[:TAG_CHARACTERS] for name, value in changes.tags.items()}
        if key not in self.runs:
            own = {SEARCH_TAG: self._search_id, "kind": "search"} if key == SEARCH else {}
            run = self._client.create_run(
                self._experiment_id, start_time=changes.started_ms, tags=tags | own, run_name=key or self._name
            )
            self.runs[key] = run.info.run_id
            tags = {}
        run_id = self.runs[key]
        for path, text in changes.files.items():
            self._client.log_text(run_id, text, path)
        self._log(run_id, changes, tags)
        if changes.status == "RUNNING":
            self._client.update_run(run_id, status="RUNNING")
        elif changes.status is not None:
            self._client.set_terminated(run_id, changes.status, changes.status_ms)

    def _log(self, run_id: str, changes: Changes, tags: dict[str, str]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        metrics = [Metric(point.name, point.value, point.time_ms, point.step) for point in changes.points]
        params = [Param(name, value) for name, value in changes.params.items()]
        all_tags = [RunTag(name, value) for name, value in tags.items()]
        # A request takes 100 parameters and tags; of more than one kind it takes 1000 together.
        requests = [{"metrics": part} for part in _parts(metrics, BATCH_METRICS)]
        for kind, entries in (("params", params), ("tags", all_tags)):
            for index, part in enumerate(_parts(entries, BATCH_TAGS)):
                if index < len(requests) and len(requests[index].get("metrics", ())) + 2 * BATCH_TAGS <= 1000:
                    requests[index][kind] = part
                else:
                    requests.append({kind: part})
        for request in requests:
            self._client.log_batch(run_id, **request)

    def _keep_one(self, twins: list[Any]) -> Any:
        """The run that stands for a candidate. Two mirrors at work at once can have made twins: the fuller stays."""
        kept, *others = sorted(twins, key=lambda run: (-len(run.data.metrics), run.info.start_time, run.info.run_id))
        for run in others:
            self._client.delete_run(run.info.run_id)
        return kept


def connect(uri: str) -> Any:
    """A client of the store at `uri`, for runs and for registered models; a SQLite store is created.

    Raises:
        TrackingError: the URI is not one, or names a folder (MLflow's retired file store).
    """
    database = _sqlite_file(uri)
    if database is None and not uri.startswith(("http://", "https://")) and "://" not in uri:
        allowed = "sqlite:///FOLDER/mlflow.db, postgresql://HOST/NAME or http://HOST:PORT"
        raise TrackingError("tracking.uri", f"got '{hide_credentials(uri)}'", allowed)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # mlflow 3.17 declares its tables with a loader that SQLAlchemy 2.1 has deprecated.
    warnings.filterwarnings("ignore", message="The ``noload`` loader strategy", category=SADeprecationWarning)
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def told_as_errors(uri: str) -> Iterator[None]:
    """Whatever the store or the way to it raises, as one `TrackingError`."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as exc:
        check = "Check tracking.uri, and that the server is up; the ledger holds everything meanwhile"
        raise TrackingError(hide_credentials(uri), describe(exc), next=check) from exc


def find_runs(client: Any, experiment_id: str, query: str) -> list[Any]:
    """All runs of an experiment that match, however many pages they fill."""
    runs: list[Any] = []
    token = None
    while True:
        page = client.search_runs([experiment_id], query, max_results=PAGE, page_token=token)
        runs += page
        token = page.token
        if not token:
            return runs


def run_ids(uri: str, experiment: str, search_id: str) -> dict[str, str]:
    """Candidate → MLflow run id, read from the store; empty where nothing was mirrored yet.

    Raises:
        TrackingError: the store cannot be read.
    """
    database = _sqlite_file(uri)
    if database is not None and not database.exists():
        return {}
    client = connect(uri)
    with told_as_errors(uri):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return {}
        runs = find_runs(client, found.experiment_id, f"tags.search_id = '{search_id}'")
        return {run.data.tags["candidate_id"]: run.info.run_id for run in runs}


def default_uri(folder: Path) -> str:
    """The store of a search that names none: `mlflow.db` in its folder."""
    return f"sqlite:///{(folder / 'mlflow.db').resolve()}"


def ui_command(uri: str, port: int = 5000) -> list[str]:
    """The command that starts MLflow's own server on a store, on this machine only.

    It needs `ui_environment` too. A database's URI with a password goes there, where `ps` does not show it.

    Raises:
        TrackingError: the store is itself a server.
    """
    if uri.startswith(("http://", "https://")):
        where = hide_credentials(uri)
        raise TrackingError("tracking.uri", f"{where} is a server already", next=f"Open {where} in a browser")
    store = [] if hide_credentials(uri) != uri else ["--backend-store-uri", uri]
    database = _sqlite_file(uri)
    artifacts = ["--default-artifact-root", (database.parent / ARTIFACTS).as_uri()] if database else []
    network = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    return [sys.executable, "-m", "mlflow", "server", *store, *artifacts, *network]


def ui_environment(uri: str) -> dict[str, str]:
    """What `ui_command` needs in its environment besides the present one."""
    hidden = {} if hide_credentials(uri) == uri else {"MLFLOW_BACKEND_STORE_URI": uri}
    return {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"} | hidden


def ui_line(uri: str, port: int = 5000) -> str:
    """The same as one line for a shell, with any password left out."""
    environment = [f"{name}={shlex.quote(hide_credentials(value))}" for name, value in ui_environment(uri).items()]
    return " ".join([*environment, shlex.join(ui_command(uri, port))])


def _ensure_experiment(client: Any, uri: str, name: str) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        database = _sqlite_file(uri)
        # Without a location MLflow would take ./mlruns, wherever the process happens to have been started.
        location = (database.parent / ARTIFACTS).as_uri() if database is not None else None
        return str(client.create_experiment(name, artifact_location=location))
    if found.lifecycle_stage != "active":
        how = f"Restore it (mlflow experiments restore -x {found.experiment_id}) or name another"
        raise TrackingError("tracking.experiment", f"'{name}' was deleted in MLflow", next=how)
    return str(found.experiment_id)


def _sqlite_file(uri: str) -> Path | None:
    """The file of a SQLite store; None for any other kind of URI."""
    if not uri.startswith("sqlite:"):
        return None
    try:
        name = make_url(uri).database
    except ArgumentError:
        name = None
    if not name:
        raise TrackingError("tracking.uri", f"got '{uri}'", "A file, as in sqlite:///FOLDER/mlflow.db")
    return Path(name).resolve()


def _parts(entries: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [entries[start : start + size] for start in range(0, len(entries), size)]
