"""Access to an MLflow store: the import of mlflow, its environment, its errors and its URIs."""

import os
import re
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SADeprecationWarning

from evosearch.errors import TrackingError
from evosearch.private_folder import PrivateFolder
from evosearch.redaction import hidden
from evosearch.tracking.accounts import check_database, kept_account, limit_accounts
from evosearch.tracking.mirror import describe

ARTIFACTS = "mlartifacts"  # folder next to a SQLite store
SEARCH_TAG = "evosearch.search_id"  # tag of the search's run; candidates have `search_id`
SCHEMES = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")

# Defaults, set before mlflow is imported. mlflow's retries are off because a request whose response was lost may have
# created a run: the mirror searches for it by its tags before creating another one.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "MLFLOW_ALLOW_HTTP_REDIRECTS": "false",  # a redirect would turn a POST into a GET, at a server nobody named
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",  # standard output is for --json
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # errors are reported in one line; mlflow would log a traceback for each
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}


_importing = threading.Lock()


def load_mlflow() -> None:
    """Import mlflow completely, one thread at a time.

    Concurrent imports see each other's partial modules: the generated protobuf modules then fail with "Couldn't build
    proto file into descriptor pool".
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # mlflow 3.17 declares its tables with a loader deprecated in SQLAlchemy 2.1.
    warnings.filterwarnings("ignore", message="The ``noload`` loader strategy", category=SADeprecationWarning)
    with _importing:
        import mlflow.artifacts  # noqa: F401 (needed to read registered models)

        limit_accounts()


def connect(uri: str) -> Any:
    """Return a client of the store at `uri`, for runs and registered models; creates a missing SQLite store.

    Raises:
        TrackingError: The URI is not supported, such as that of a folder (MLflow's former file store), or the SQLite
            store cannot be created.
    """
    database = sqlite_file(uri)
    check_scheme(uri)
    if database is not None:
        database.parent.mkdir(parents=True, exist_ok=True)
    load_mlflow()
    from mlflow import MlflowClient

    if database is not None and not (database.exists() and database.stat().st_size):
        _create(database)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def _create(database: Path) -> None:
    """Create a SQLite store: completely or not at all, and only one of several processes.

    MLflow creates its tables in many steps, and cannot continue after a kill between two of them.

    Raises:
        TrackingError: The file cannot be created.
    """
    from mlflow import MlflowClient

    try:
        # The program may end while the mirror's thread is here: a `TemporaryDirectory` would be removed under SQLite
        with PrivateFolder.make(".mlflow-", database.parent) as folder:
            draft = folder.path / database.name
            uri = f"sqlite:///{draft}"
            client = MlflowClient(tracking_uri=uri, registry_uri=uri)
            client.search_experiments(max_results=1)
            client.search_registered_models(max_results=1)
            _disconnect(draft)
            _publish(draft, database)
    except OSError as exc:
        next = "Free disk space, change the permissions of its folder, or choose another path"
        raise TrackingError("tracking.uri", f"{database} cannot be created: {exc.strerror}", next=next) from exc
    _disconnect(database)


def _publish(draft: Path, database: Path) -> None:
    """Give a draft its name, unless another process was faster: that may have written to its store already."""
    try:
        os.link(draft, database)
    except FileExistsError:
        if not database.stat().st_size:  # left by a program that was killed
            os.replace(draft, database)
    except OSError:  # a file system without links
        if not database.exists():
            os.replace(draft, database)


def _disconnect(database: Path) -> None:
    """Close the connections that MLflow keeps to a file for each URI; they stay at a file that was replaced."""
    from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore as ModelStore
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore as RunStore

    for store in (RunStore, ModelStore):
        for uri, engine in list(store._engine_map.items()):
            if uri.startswith("sqlite:") and sqlite_file(uri) == database:
                engine.dispose()


def check_scheme(uri: str) -> None:
    """Check the scheme of a tracking URI, and that of a database further.

    Raises:
        TrackingError: MLflow does not support the scheme, or see `check_database`.
    """
    if uri.partition(":")[0].partition("+")[0] not in SCHEMES:
        allowed = "sqlite:///FOLDER/mlflow.db, postgresql://HOST/NAME or http://HOST:PORT"
        raise TrackingError("tracking.uri", f"got '{hidden(uri)}'", allowed)
    check_database(uri)


@contextmanager
def as_tracking_errors(uri: str) -> Iterator[None]:
    """Convert all errors of the store, or of the connection to it, to `TrackingError`."""
    load_mlflow()
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, RequestException, SQLAlchemyError, OSError) as exc:
        check = "Check tracking.uri and that the server is up; no data is lost, as the ledger has everything"
        if re.search("authenti|password|permission|401|403", str(exc), re.IGNORECASE):
            check = kept_account(uri) or check
        raise TrackingError(hidden(uri), describe(exc), next=check) from exc


def pages(query: Callable[..., Any], *arguments: Any) -> Iterator[Any]:
    """Yield all results of a paginated query of the client."""
    token = None
    while True:
        page = query(*arguments, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def find_runs(client: Any, experiment_ids: list[str], query: str) -> list[Any]:
    """Return all matching runs of some experiments."""
    return list(pages(client.search_runs, experiment_ids, query)) if experiment_ids else []


def search_runs(client: Any, search_id: str) -> list[Any]:
    """Return the runs in all experiments that are those of a search itself; one, or none if nothing was mirrored."""
    experiments = [found.experiment_id for found in pages(client.search_experiments)]
    return find_runs(client, experiments, f"tags.`{SEARCH_TAG}` = '{search_id}'")


def run_ids(uri: str, search_id: str, candidate: str | None = None) -> dict[str, str]:
    """Return candidate → MLflow run id from the store; empty if nothing was mirrored yet.

    Args:
        uri: Tracking URI.
        search_id: The search.
        candidate: Only this one: all runs of a long search take seconds.

    Raises:
        TrackingError: The store cannot be read.
    """
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        return {}  # connecting would create it
    with as_tracking_errors(uri):
        client = connect(uri)
        experiments = [found.experiment_id for found in pages(client.search_experiments)]
        of_candidate = "" if candidate is None else f" AND tags.candidate_id = '{candidate}'"
        runs = find_runs(client, experiments, f"tags.search_id = '{search_id}'{of_candidate}")
    return {run.data.tags["candidate_id"]: run.info.run_id for run in runs}


def mirrored_in(uri: str, experiment: str, name: str) -> tuple[str, str] | None:
    """Return (experiment id, search id) of the latest search of a name that is mirrored; None without one.

    Args:
        uri: Tracking URI.
        experiment: Name of the experiment; without the search there, all are looked through.
        name: Name of the search.

    Raises:
        TrackingError: The store cannot be read.
    """
    database = sqlite_file(uri)
    if database is not None and not database.exists():
        return None  # connecting would create it
    with as_tracking_errors(uri):
        client = connect(uri)
        every = list(pages(client.search_experiments))
        query = f"tags.kind = 'search' AND attributes.run_name = '{name}'"
        for some in ([one for one in every if one.name == experiment], every):
            for run in find_runs(client, [one.experiment_id for one in some], query):
                if search_id := run.data.tags.get("evosearch.search_id"):
                    return str(run.info.experiment_id), search_id
    return None


def default_uri(folder: Path) -> str:
    """Return the default store of a search: `mlflow.db` in its folder."""
    return f"sqlite:///{(folder / 'mlflow.db').resolve()}"


def sqlite_file(uri: str) -> Path | None:
    """Return the file of a SQLite store, or None for other kinds of URIs.

    Raises:
        TrackingError: The SQLite URI does not name a file.
    """
    if not uri.startswith("sqlite:"):
        return None
    try:
        name = make_url(uri).database
    except ArgumentError:
        name = None
    if not name:
        raise TrackingError("tracking.uri", f"got '{uri}'", "A file: sqlite:///FOLDER/mlflow.db")
    return Path(name).resolve()
