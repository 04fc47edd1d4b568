"""Where things lie: the folder of runs, and in it a folder a search, its ledger and the tracking store.

A spec of stages has one folder and one ledger, and in its folder one for each stage.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from evosearch.errors import LedgerError
from evosearch.search.ledger import Ledger
from evosearch.search.ledger_errors import NoLedgerError
from evosearch.service.spec import SearchSpec, SpecFile, is_spec
from evosearch.service.staged import StagedSpec, StagesFile, load

SQLITE = "sqlite:///"


def runs_folder() -> Path:
    """$EVOSEARCH_RUNS, or `runs` in the working directory."""
    return Path(os.environ.get("EVOSEARCH_RUNS") or "runs").resolve()


@dataclass(frozen=True)
class Places:
    """The places of one search; `name` is what the ledger knows it by."""

    name: str
    folder: Path
    ledger: str  # database URL
    tracking: str  # MLflow tracking URI
    experiment: str  # MLflow experiment

    @property
    def exported(self) -> Path:
        return self.folder / "export"

    @property
    def winner(self) -> Path:
        """The recipe file of a stage's winner."""
        return self.folder / "winner.yaml"


def places_of(spec: SearchSpec) -> Places:
    """The places of a search that a spec describes; nothing is created."""
    if spec.stage is None:
        return _places(spec.config, spec.name)
    return _places(spec.config, spec.stage.whole, spec.stage.name)


def stage_places(spec: StagedSpec, index: int) -> Places:
    """The places of one stage, before it is known what it builds on; nothing is created."""
    return _places(spec.config, spec.name, spec.config.stages[index].name)


def _places(config: SpecFile | StagesFile, whole: str, stage: str | None = None) -> Places:
    own = default_places(whole)
    return Places(
        f"{whole}.{stage}" if stage else whole,
        own.folder / stage if stage else own.folder,
        config.ledger or own.ledger,
        config.tracking.uri or own.tracking,
        config.tracking.experiment or whole,
    )


def default_places(name: str) -> Places:
    """The places of a search that names neither ledger nor tracking server."""
    return _in_folder(runs_folder() / name)


def _in_folder(folder: Path) -> Places:
    """The same by the search's folder, wherever that is."""
    tracking = f"{SQLITE}{folder.parent / 'mlflow.db'}"
    return Places(folder.name, folder, f"{SQLITE}{folder / 'ledger.db'}", tracking, folder.name)


def find(search: str) -> Places:
    """The places of a search by its name, its folder or its spec file; of stages the last that has begun.

    Raises:
        LedgerError: it is none of these.
    """
    path = Path(search)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if is_spec(path):
            return _of_spec(path)
        raise LedgerError(str(path), "is a recipe, not a search spec", "The name of a search, or its spec file")
    own, whole = default_places(search), default_places(search.rpartition(".")[0] or search)
    if own.folder.is_dir():
        return _latest(own, own.name) or own
    return _latest(whole, search) or _latest(_in_folder(path.resolve()), path.resolve().name) or _no_such(search)


def _no_such(search: str) -> NoReturn:
    known = sorted(folder.name for folder in runs_folder().glob("*") if (folder / "ledger.db").is_file())
    allowed = f"Searches in {runs_folder()}: {', '.join(known) or 'none'}"
    raise LedgerError(search, "no such search", allowed, "Name a search, or give its spec file")


def _latest(places: Places, name: str) -> Places | None:
    """The latest search of that name, or of its stages, in a folder's own ledger."""
    for found in recorded_names(places.ledger):
        if found == name or found.startswith(f"{name}."):
            stage = found.removeprefix(places.name).removeprefix(".")
            return replace(places, name=found, folder=places.folder / stage)
    return None


def _of_spec(path: Path) -> Places:
    spec = load(path)
    if isinstance(spec, SearchSpec):
        return places_of(spec)
    known = recorded_names(stage_places(spec, 0).ledger)
    return stage_places(spec, max((i for i in range(spec.count) if spec.search_name(i) in known), default=0))


def recorded_names(ledger: str) -> list[str]:
    """The names of the searches in a ledger, the latest first; none where there is no ledger yet.

    Raises:
        LedgerError: it cannot be read.
    """
    file = ledger.removeprefix(SQLITE)
    if file != ledger and not Path(file).is_file():
        return []
    try:
        with Ledger.open(ledger, read_only=True) as opened:
            return [info.name for info in opened.searches()]
    except NoLedgerError:  # an empty database
        return []
