"""Checks of the ledger and the tracking store of a search."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from evosearch.errors import LedgerError, SpecError, TrackingError
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.ledger.server_access import withheld
from evosearch.search.ledger.store import check_server, parse_url
from evosearch.setup.trackers import JSON_LINES, jsonl_file, tracking_file
from evosearch.spec.diagnostics import Diagnostics
from evosearch.spec.own_names import LEDGER_FILE, LEDGER_URL_FILE, MLFLOW_FILE, free_file
from evosearch.spec.run_dir import SQLITE, runs_folder
from evosearch.spec.spec import SearchSpec
from evosearch.tracking.access import check_file, check_read_access, check_write_access
from evosearch.tracking.accounts import kept_account
from evosearch.tracking.jsonl import check_lines

NO_ACCOUNT = "not authenticated"  # in MLflow's message if an account is missing or its password is wrong


def check_ledger(spec: SearchSpec, diagnostics: Diagnostics) -> None:
    """Check that the ledger can be written, or created; nothing is created here.

    Raises:
        LedgerError: It cannot.
        SpecError: Its file is one that evosearch writes for something else.
    """
    run_dir, where = spec.run_dir, f"{spec.file}: ledger"
    url = run_dir.ledger
    if run_dir.external_ledger is not None:
        check_file(run_dir.folder / LEDGER_URL_FILE, "EVOSEARCH_RUNS", LedgerError)
    if not url.startswith(SQLITE):
        check_server(url, where)
        if (kept := withheld(parse_url(url, where))) is not None:
            diagnostics.note(f"{where}: {kept}")
        return
    database = Path(url.removeprefix(SQLITE))
    if not database.name:
        raise LedgerError(where, f"got '{url}'", "sqlite:///FILE, or the URL of a PostgreSQL database")
    with _at(where):
        free_file(url, database, LEDGER_FILE, runs_folder())
    if database.resolve() == tracking_file(run_dir):
        raise LedgerError(where, f"{database} is also the file of tracking.uri", next="Choose another file for one")
    check_file(database, where, LedgerError)
    if os.path.exists(database):
        with Ledger.open(url, where, read_only=True):
            pass


def check_tracking_store(spec: SearchSpec, diagnostics: Diagnostics) -> None:
    """Check that the tracking store can be used, as far as reading shows it.

    Raises:
        TrackingError: It cannot be reached, or refuses.
        SpecError: Its file is one that evosearch writes for something else.
    """
    run_dir, name = spec.run_dir, spec.config.promotion.register_as
    if run_dir.tracking.startswith(SQLITE):
        with _at(spec.at("tracking.uri")):
            free_file(run_dir.tracking, Path(run_dir.tracking.removeprefix(SQLITE)), MLFLOW_FILE, runs_folder())
    with _at_spec_key(spec):
        if run_dir.tracking.startswith(JSON_LINES):
            check_file(jsonl_file(run_dir), "tracking.uri")
            check_lines(jsonl_file(run_dir), "tracking.uri")
            return
        text = check_read_access(run_dir.tracking, run_dir.experiment, name)
    for found in (text, kept_account(run_dir.tracking)):
        if found is not None:
            diagnostics.note(found)


def prove_tracking_store(spec: SearchSpec) -> None:
    """Write to the tracking server of a search that starts what its mirror writes first.

    Local files are left to the mirror: reading has shown that they can be written.

    Raises:
        TrackingError: It cannot be reached, or refuses.
    """
    run_dir, name = spec.run_dir, spec.config.promotion.register_as
    if not run_dir.tracking.startswith((JSON_LINES, SQLITE)):
        with _at_spec_key(spec):
            check_write_access(run_dir.tracking, run_dir.experiment, run_dir.name, name)


@contextmanager
def _at(where: str) -> Iterator[None]:
    """Locate errors at a key of the spec."""
    try:
        yield
    except SpecError as error:
        raise SpecError(where, error.what, error.allowed, error.next) from None


@contextmanager
def _at_spec_key(spec: SearchSpec) -> Iterator[None]:
    """Locate errors of a tracking store at the spec's key."""
    try:
        yield
    except TrackingError as error:
        what = error.what if error.where.startswith("tracking.") else f"{error.where}: {error.what}"
        key = error.where if error.where.startswith("tracking.") else "tracking.uri"
        next_step = error.next if key == error.where else "Check the URI, and that the server is up"
        if NO_ACCOUNT in what:
            named = "and MLFLOW_TRACKING_URI, which says for which server they are"
            account = f"Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, {named}"
            next_step = kept_account(spec.run_dir.tracking) or account
        raise TrackingError(spec.at(key), what, error.allowed, next_step) from error
