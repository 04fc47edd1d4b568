"""Find recorded searches: by name, run directory or spec file."""

import os
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from evosearch import documents
from evosearch.errors import LedgerError, SpecError, did_you_mean
from evosearch.search.ledger.database_errors import NoLedgerError
from evosearch.search.ledger.ledger import Ledger
from evosearch.spec.kinds import Kind, kind_of
from evosearch.spec.own_names import LEDGER_FILE, LEDGER_URL_FILE
from evosearch.spec.placebo_spec import is_placebo
from evosearch.spec.run_dir import SQLITE, RunDir, run_dir_at, runs_folder
from evosearch.spec.spec import SearchSpec
from evosearch.spec.stages import parse


def find(search: str) -> RunDir:
    """The run directory of a search, given its name, its folder or its spec file.

    For a multi-stage run it is that of the latest stage that has started; placebos are only found by their full names.

    Raises:
        LedgerError: There is no such search.
    """
    path = Path(search)
    if path.suffix in (".yaml", ".yml") or os.path.isfile(path):
        return _from_spec(path)
    runs, path = runs_folder(), path.resolve()
    own, pipeline = _recorded(runs / search), _recorded(runs / (search.rpartition(".")[0] or search))
    if os.path.isdir(own.folder):
        return _latest(own, own.name) or own
    return _latest(pipeline, search) or _latest(_recorded(path), path.name) or _not_found(search)


def ledger_of(search: str) -> str:
    """The URL of a search's ledger, which need not be readable.

    Args:
        search: A search (name, run directory or spec file), or a ledger (URL or SQLite file).

    Raises:
        LedgerError: There is no such search or ledger.
    """
    path = Path(search)
    if "://" in search:
        return search
    if path.suffix in (".yaml", ".yml"):
        spec = parse(path, documents.read(path, SpecError))
        return (spec.run_dir if isinstance(spec, SearchSpec) else spec.run_dir(0)).ledger
    if os.path.isfile(path):
        return f"{SQLITE}{path.resolve()}"
    for folder in (runs_folder() / search, runs_folder() / (search.rpartition(".")[0] or search), path.resolve()):
        if any(os.path.isfile(folder / name) for name in (LEDGER_FILE, LEDGER_URL_FILE)):
            return _recorded(folder).ledger
    return _not_found(search)


def recorded_run_dirs() -> list[RunDir]:
    """All run directories in the runs folder, by name; one for all stages of a multi-stage run.

    Raises:
        LedgerError: The runs folder cannot be read.
    """
    runs = runs_folder()
    try:
        folders = [runs / name for name in sorted(os.listdir(runs))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        what = f"cannot read the folder {runs}: {exc.strerror}"
        raise LedgerError("EVOSEARCH_RUNS", what, next="Choose another folder, or change its permissions") from None
    files = (LEDGER_FILE, LEDGER_URL_FILE)
    return [_recorded(folder) for folder in folders if any(os.path.isfile(folder / name) for name in files)]


def recorded_names(ledger: str, where: str = "ledger") -> list[str]:
    """Names of the searches in a ledger, latest first; empty where there is no ledger yet.

    Args:
        ledger: Database URL.
        where: Name of the ledger in errors.

    Raises:
        LedgerError: The ledger cannot be read.
    """
    file = ledger.removeprefix(SQLITE)
    if file != ledger and not os.path.isfile(file):
        return []
    try:
        with Ledger.open(ledger, where, read_only=True) as opened:
            return [info.name for info in opened.searches() if info.name]
    except NoLedgerError:  # an empty database
        return []


def _recorded(folder: Path) -> RunDir:
    """The run directory at `folder`, with the ledger that its search was started with."""
    run_dir, file = run_dir_at(folder), folder / LEDGER_URL_FILE
    if not os.path.isfile(file):
        return run_dir
    try:
        return replace(run_dir, ledger=file.read_text(encoding="utf-8", errors="replace").strip())
    except OSError as exc:
        raise LedgerError(str(file), f"cannot be read: {exc.strerror}", next="Give the search's spec file") from None


def _latest(run_dir: RunDir, name: str) -> RunDir | None:
    """The latest search of this name, or the latest of its stages, in a run directory's ledger."""
    where = "ledger" if run_dir.external_ledger is None else str(run_dir.root / LEDGER_URL_FILE)
    for found in recorded_names(run_dir.ledger, where):
        stage_of = found.startswith(f"{name}.") and not is_placebo(found)
        if (found == name or stage_of) and run_dir.owns(found):
            stage = found.removeprefix(run_dir.name).removeprefix(".")
            return replace(run_dir, name=found, folder=run_dir.root / stage)
    return None


def _from_spec(path: Path) -> RunDir:
    found = documents.read_all(path, SpecError)
    if kind_of(found) is not Kind.SPEC:
        raise LedgerError(str(path), "is not a search spec", "The name of a search, or its spec file")
    spec = parse(path, documents.single(found, str(path), SpecError))
    if isinstance(spec, SearchSpec):
        return spec.run_dir
    recorded = recorded_names(spec.run_dir(0).ledger)
    return spec.run_dir(max((i for i in range(spec.count) if spec.search_name(i) in recorded), default=0))


def _not_found(search: str) -> NoReturn:
    known = [found.name for found in recorded_run_dirs()]
    allowed = f"Searches in {runs_folder()}: {', '.join(known) or 'none'}"
    near = did_you_mean(search, known) or "Check the name, or give the spec file"
    raise LedgerError(search, "no such search", allowed, near)
