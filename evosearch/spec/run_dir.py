"""Where things lie: the folder of runs, and in it a folder a search, its ledger and the tracking store.

A spec of stages has one folder and one ledger, and in its folder one for each stage. Where a ledger lies elsewhere, its
search's folder says where (`ledger.url`), so that every search goes by its name.
"""

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from evosearch.errors import LedgerError
from evosearch.search.ledger.errors import NoLedgerError
from evosearch.search.ledger.ledger import Ledger
from evosearch.spec.credentials import without_credentials
from evosearch.spec.spec import SearchSpec, SpecFile, is_spec
from evosearch.spec.stages import StagedSpec, StagesFile, load

SQLITE = "sqlite:///"
OWN_LEDGER = "ledger.db"  # in a search's folder, unless its spec names another
ELSEWHERE = "ledger.url"  # there where it does: one line, the URL of that ledger, without a password


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
    return Places(folder.name, folder, f"{SQLITE}{folder / OWN_LEDGER}", tracking, folder.name)


def find(search: str) -> Places:
    """The places of a search by its name, its folder or its spec file; of stages the last that has begun.

    Raises:
        LedgerError: it is none of these.
    """
    path = Path(search)
    if path.suffix in (".yaml", ".yml") or os.path.isfile(path):
        if is_spec(path):
            return _of_spec(path)
        raise LedgerError(str(path), "is a recipe, not a search spec", "The name of a search, or its spec file")
    runs, path = runs_folder(), path.resolve()
    own, whole = _as_begun(runs / search), _as_begun(runs / (search.rpartition(".")[0] or search))
    if os.path.isdir(own.folder):
        return _latest(own, own.name) or own
    return _latest(whole, search) or _latest(_as_begun(path), path.name) or _no_such(search)


def begun() -> list[Places]:
    """The searches in the folder of runs, by name; of stages the whole.

    Raises:
        LedgerError: the folder cannot be read.
    """
    runs = runs_folder()
    try:
        folders = [runs / name for name in sorted(os.listdir(runs))]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        what = f"the folder {runs} cannot be read: {exc.strerror}"
        raise LedgerError("EVOSEARCH_RUNS", what, next="Name another folder, or change its permissions") from None
    has = [folder for folder in folders if any(os.path.isfile(folder / name) for name in (OWN_LEDGER, ELSEWHERE))]
    return [_as_begun(folder) for folder in has]


def remember_ledger(spec: SearchSpec) -> None:
    """Write into the folder of a search that begins which ledger it has; of a stage, into that of the whole as well.

    A ledger in the folder itself is left unsaid: so the folder may be moved.

    Raises:
        LedgerError: the folder cannot be written.
        SpecError: the ledger's URL holds a password.
    """
    places, url = places_of(spec), elsewhere(spec)
    whole = places.folder if spec.stage is None else places.folder.parent
    for folder in dict.fromkeys((whole, places.folder)):
        try:
            if url is None:
                (folder / ELSEWHERE).unlink(missing_ok=True)
            else:
                _write(folder / ELSEWHERE, without_credentials(url))
        except OSError as exc:
            what = f"{folder / ELSEWHERE} cannot be written: {exc.strerror}"
            raise LedgerError("EVOSEARCH_RUNS", what, next="Name a folder you may write to") from None


def elsewhere(spec: SearchSpec) -> str | None:
    """The ledger of a search where that is not in its own folder; a file by its whole path, for any working folder."""
    url = places_of(spec).ledger
    if url.startswith(SQLITE):
        url = f"{SQLITE}{os.path.abspath(url.removeprefix(SQLITE))}"
    own = default_places(spec.stage.whole if spec.stage else spec.name).ledger
    return url if url != own else None


def _write(file: Path, url: str) -> None:
    """Whole or not at all: others may read it meanwhile."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_text(f"{url}\n", encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def _as_begun(folder: Path) -> Places:
    """The places of the search whose folder this is, with the ledger that it began with."""
    places, file = _in_folder(folder), folder / ELSEWHERE
    if not os.path.isfile(file):
        return places
    try:
        return replace(places, ledger=file.read_text(encoding="utf-8", errors="replace").strip())
    except OSError as exc:
        raise LedgerError(str(file), f"cannot be read: {exc.strerror}", next="Give the search's spec file") from None


def _no_such(search: str) -> NoReturn:
    allowed = f"Searches in {runs_folder()}: {', '.join(places.name for places in begun()) or 'none'}"
    raise LedgerError(search, "no such search", allowed, "Name a search, or give its spec file")


def _latest(places: Places, name: str) -> Places | None:
    """The latest search of that name, or of its stages, in the ledger of a folder."""
    for found in recorded_names(places.ledger, _where(places)):
        if (found == name or found.startswith(f"{name}.")) and lies_in(places, found):
            stage = found.removeprefix(places.name).removeprefix(".")
            return replace(places, name=found, folder=places.folder / stage)
    return None


def lies_in(places: Places, found: str) -> bool:
    """Whether a search in the ledger of a folder is the folder's: that of others may hold `night.v2` beside `night`.

    A stage has a folder in that of the whole from its beginning.
    """
    if places.ledger == _in_folder(places.folder).ledger or found == places.name:
        return True
    return found.startswith(f"{places.name}.") and os.path.isdir(places.folder / found.removeprefix(f"{places.name}."))


def _where(places: Places) -> str:
    """What errors about the ledger of a folder name."""
    own = places.ledger == _in_folder(places.folder).ledger
    return "ledger" if own else str(places.folder / ELSEWHERE)


def _of_spec(path: Path) -> Places:
    spec = load(path)
    if isinstance(spec, SearchSpec):
        return places_of(spec)
    known = recorded_names(stage_places(spec, 0).ledger)
    return stage_places(spec, max((i for i in range(spec.count) if spec.search_name(i) in known), default=0))


def recorded_names(ledger: str, where: str = "ledger") -> list[str]:
    """The names of the searches in a ledger, the latest first; none where there is no ledger yet.

    Args:
        where: what an error names.

    Raises:
        LedgerError: it cannot be read.
    """
    file = ledger.removeprefix(SQLITE)
    if file != ledger and not os.path.isfile(file):
        return []
    try:
        with Ledger.open(ledger, where, read_only=True) as opened:
            return [info.name for info in opened.searches()]
    except NoLedgerError:  # an empty database
        return []


def data_folder() -> Path:
    """$EVOSEARCH_DATA, or `evosearch` in the user's data folder."""
    own = os.environ.get("EVOSEARCH_DATA")
    if own:
        return Path(own).resolve()
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "evosearch"
