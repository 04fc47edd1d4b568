"""Access checks of a tracking store, before a search relies on it.

The read-only check creates and changes nothing, so it cannot prove write access; it returns what remains unchecked.
"""

import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

from evosearch.errors import InputError, TrackingError
from evosearch.redaction import hidden
from evosearch.tracking.accounts import refuse_storage
from evosearch.tracking.client import as_tracking_errors, check_scheme, connect, sqlite_file
from evosearch.tracking.mlflow import deleted, ensure_experiment

CHECKED = "evosearch.search"  # tag of an experiment or a registered model: the last search that was started
SERVERS = ("http", "https", "databricks")  # they create their own tables, so a request creates none
MLFLOW_TABLE = "experiments"
HEADER = b"SQLite format 3\0"


def check_read_access(uri: str, experiment: str, registered: str | None) -> str | None:
    """Check that a search can read the store, without writing to it.

    Args:
        uri: Tracking URI.
        experiment: Name of the experiment.
        registered: Name under which the winner would be registered.

    Returns:
        A sentence on what is only checked when the search starts; None if everything was checked.

    Raises:
        TrackingError: The store cannot be reached or rejects this account, the experiment was deleted, or a file or its
            folder cannot be written.
    """
    check_scheme(uri)
    file = sqlite_file(uri)
    if file is not None:
        check_file(file, "tracking.uri")
        _check_database(file)
        return None
    place = f"MLflow at {hidden(uri)}"
    if uri.partition(":")[0] not in SERVERS:
        return f"{place} is not opened before the search starts, because that would create its tables"
    with as_tracking_errors(uri):
        client = connect(uri)
        client.search_experiments(max_results=1)
        found = client.get_experiment_by_name(experiment)
        if registered is not None:
            client.search_registered_models(max_results=1)
    if found is not None and found.lifecycle_stage != "active":
        raise deleted(experiment, found.experiment_id)
    if found is not None:
        refuse_storage(uri, found.artifact_location)
    exists = f"experiment '{experiment}' {'exists' if found is not None else 'does not exist yet'}"
    return f"{place} accepts this account ({exists}); write access is checked when the search starts"


def check_write_access(uri: str, experiment: str, search: str, registered: str | None) -> None:
    """Check write access by creating the experiment and tagging it with the name of the search.

    An existing registered model is also tagged, which requires the same permission as a new version. A missing one is
    not created: any account may do that later.

    Raises:
        TrackingError: The store cannot be reached, or refuses the request.
    """
    with as_tracking_errors(uri):
        client = connect(uri)
        found = ensure_experiment(client, uri, experiment)
        refuse_storage(uri, client.get_experiment(found).artifact_location)
        client.set_experiment_tag(found, CHECKED, search)
        if registered is not None and client.search_registered_models(f"name = '{registered}'", max_results=1):
            client.set_registered_model_tag(registered, CHECKED, search)


def check_file(file: Path, where: str, error: type[InputError] = TrackingError) -> None:
    """Check that a file can be written, or created in its folder; creates nothing.

    Args:
        file: File to check.
        where: Setting to name in errors.
        error: Class of the error.

    Raises:
        InputError: The file cannot be written; raised as `error`.
    """
    try:
        os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as exc:  # an inaccessible folder, or a path that is too long
        what = f"{file} cannot be used: {getattr(exc, 'strerror', None) or exc}"
        raise error(where, what, next="Change the permissions of its folder, or choose another path") from None
    nearest = next(one for one in (file, *file.parents) if os.path.exists(one))
    if nearest == file and not os.path.isfile(file):
        raise error(where, f"{file} is a folder", "A file", "Choose another path")
    if nearest != file and not os.path.isdir(nearest):
        raise error(where, f"{nearest} is a file, not a folder", next="Choose another path")
    if not os.access(nearest, os.W_OK):
        raise error(where, f"{nearest} cannot be written", next="Change its permissions, or choose another path")


def _check_database(file: Path) -> None:
    """Check that an existing file is a database of MLflow.

    Raises:
        TrackingError: The file is not a database of MLflow, or cannot be read.
    """
    if not os.path.isfile(file) or file.stat().st_size == 0:
        return
    with file.open("rb") as opened:
        if opened.read(len(HEADER)) != HEADER:
            raise TrackingError("tracking.uri", f"{file} is not a SQLite database", next="Choose another file")
    try:
        database = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)
        try:
            tables = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        finally:
            database.close()
    except sqlite3.Error as error:
        raise TrackingError("tracking.uri", f"{file} cannot be read: {error}", next="Choose another file") from None
    if tables and MLFLOW_TABLE not in tables:  # MLflow would add its tables to a ledger, for example
        what = f"{file} is another program's database, with the tables {', '.join(sorted(tables)[:3])}"
        raise TrackingError("tracking.uri", what, "A database of MLflow, or a new file", "Choose another file")
