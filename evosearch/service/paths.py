"""Where things lie: the folder of runs, and in it a folder a search, its ledger and the tracking store."""

import os
from dataclasses import dataclass
from pathlib import Path

from evosearch.errors import LedgerError
from evosearch.service.spec import SearchSpec, is_spec, load_spec


def runs_folder() -> Path:
    """$EVOSEARCH_RUNS, or `runs` in the working directory."""
    return Path(os.environ.get("EVOSEARCH_RUNS") or "runs").resolve()


@dataclass(frozen=True)
class Places:
    """The places of one search."""

    name: str
    folder: Path
    ledger: str  # database URL
    tracking: str  # MLflow tracking URI
    experiment: str  # MLflow experiment

    @property
    def exported(self) -> Path:
        return self.folder / "export"


def places_of(spec: SearchSpec) -> Places:
    """The places of a search that a spec describes; nothing is created."""
    own = default_places(spec.name)
    return Places(
        spec.name,
        own.folder,
        spec.config.ledger or own.ledger,
        spec.config.tracking.uri or own.tracking,
        spec.config.tracking.experiment or spec.name,
    )


def default_places(name: str) -> Places:
    """The places of a search that names neither ledger nor tracking server."""
    runs = runs_folder()
    folder = runs / name
    return Places(name, folder, f"sqlite:///{folder / 'ledger.db'}", f"sqlite:///{runs / 'mlflow.db'}", name)


def find(name_or_spec: str) -> Places:
    """The places of a search by its name or by its spec file.

    Raises:
        LedgerError: it is neither a file nor the name of a search in the folder of runs.
    """
    path = Path(name_or_spec)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        if is_spec(path):
            return places_of(load_spec(path))
        raise LedgerError(str(path), "is a recipe, not a search spec", "The name of a search, or its spec file")
    places = default_places(name_or_spec)
    if not places.folder.is_dir():
        known = sorted(folder.name for folder in runs_folder().glob("*") if (folder / "ledger.db").is_file())
        allowed = f"Searches in {runs_folder()}: {', '.join(known) or 'none'}"
        raise LedgerError(name_or_spec, "no such search", allowed, "Name a search, or give its spec file")
    return places
