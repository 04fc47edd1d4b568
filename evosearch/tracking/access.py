"""Whether a tracking store can be used, before a search relies on it.

Looking creates nothing and changes nothing, and so proves less than writing does: what it says tells how much.
"""

import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

from evosearch.credentials import hidden
from evosearch.errors import InputError, TrackingError
from evosearch.tracking.client import check_scheme, connect, sqlite_file, told_as_errors
from evosearch.tracking.mlflow import deleted, ensure_experiment

CHECKED = "evosearch.search"  # tag of an experiment, or a registered model: the search that was started last
SERVERS = ("http", "https", "databricks")  # which make their tables themselves: asking makes nothing
HEADER = b"SQLite format 3\0"


def look_at(uri: str, experiment: str, registered: str | None) -> str | None:
    """Read what a search would read first.

    Args:
        registered: the name that its winner would be registered under.

    Returns:
        What is known now, a sentence; None where that is all there is to know.

    Raises:
        TrackingError: the store cannot be reached or does not accept this account, the experiment was deleted, or a
            file or its folder cannot be written.
    """
    check_scheme(uri)
    file = sqlite_file(uri)
    if file is not None:
        check_file(file, "tracking.uri")
        _check_database(file)
        return None
    place = f"MLflow at {hidden(uri)}"
    if uri.partition(":")[0] not in SERVERS:
        return f"{place} is not opened before the search starts, since its tables would be made"
    with told_as_errors(uri):
        client = connect(uri)
        client.search_experiments(max_results=1)
        found = client.get_experiment_by_name(experiment)
        if registered is not None:
            client.search_registered_models(max_results=1)
    if found is not None and found.lifecycle_stage != "active":
        raise deleted(experiment, found.experiment_id)
    has = "has" if found is not None else "does not have yet"
    later = "that it may be written to is seen when the search starts"
    return f"{place} answers this account, and {has} the experiment '{experiment}'; {later}"


def write_to(uri: str, experiment: str, search: str, registered: str | None) -> None:
    """Write what a search would write first: its experiment, and in it the name of the search.

    A registered model that is there is marked alike, which asks for the same permission as a new version of it does.
    One that is not is left to be made: any account may.

    Raises:
        TrackingError: the store cannot be reached, or refuses.
    """
    with told_as_errors(uri):
        client = connect(uri)
        client.set_experiment_tag(ensure_experiment(client, uri, experiment), CHECKED, search)
        if registered is not None and client.search_registered_models(f"name = '{registered}'", max_results=1):
            client.set_registered_model_tag(registered, CHECKED, search)


def check_file(file: Path, where: str, error: type[InputError] = TrackingError) -> None:
    """Raises:
    error: a file cannot be written, or made in its folder; nothing is made.
    """
    try:
        os.stat(file)
    except (FileNotFoundError, NotADirectoryError):
        pass
    except (OSError, ValueError) as exc:  # in a folder that is closed to us; longer than a path can be
        what = f"{file} cannot be used: {getattr(exc, 'strerror', None) or exc}"
        raise error(where, what, next="Change its folder's permissions, or name another place") from None
    nearest = next(one for one in (file, *file.parents) if os.path.exists(one))
    if nearest == file and not os.path.isfile(file):
        raise error(where, f"{file} is a folder", "A file", "Name another place")
    if nearest != file and not os.path.isdir(nearest):
        raise error(where, f"{nearest} is a file, not a folder", next="Name another place")
    if not os.access(nearest, os.W_OK):
        raise error(where, f"{nearest} cannot be written", next="Change its permissions, or name another place")


def _check_database(file: Path) -> None:
    """Raises:
    TrackingError: there is a file, and it is no database.
    """
    if not os.path.isfile(file) or file.stat().st_size == 0:
        return
    with file.open("rb") as opened:
        if opened.read(len(HEADER)) != HEADER:
            raise TrackingError("tracking.uri", f"{file} is no SQLite database", next="Name another file")
    try:
        database = sqlite3.connect(f"file:{quote(str(file))}?mode=ro", uri=True)
        try:
            database.execute("SELECT name FROM sqlite_master LIMIT 1").fetchall()
        finally:
            database.close()
    except sqlite3.Error as error:
        raise TrackingError("tracking.uri", f"{file} cannot be read: {error}", next="Name another file") from None
