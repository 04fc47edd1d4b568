"""Run directories: the folder of each search, with its ledger and its tracking store.

The stages of a multi-stage run share a folder and a ledger; each stage has its own subfolder. If the ledger is not in
the run directory, the file `ledger.url` there has its URL, so that a search can be found by its name.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from evosearch.errors import LedgerError
from evosearch.spec.config import TrackingConfig
from evosearch.spec.credentials import without_credentials
from evosearch.spec.own_names import EXPORT_FOLDER, LEDGER_FILE, LEDGER_URL_FILE, MLFLOW_FILE, WINNER_FILE

SQLITE = "sqlite:///"
LONGEST_URL = 4096  # bytes of ledger.url


def runs_folder() -> Path:
    """The folder of all run directories: $EVOSEARCH_RUNS, or `runs` in the working directory."""
    return Path(os.environ.get("EVOSEARCH_RUNS") or "runs").resolve()


def data_folder() -> Path:
    """The folder of data shared by all searches: $EVOSEARCH_DATA, or `evosearch` in the user's data folder."""
    own = os.environ.get("EVOSEARCH_DATA")
    if own:
        return Path(own).resolve()
    return Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share") / "evosearch"


@dataclass(frozen=True)
class RunDir:
    """The run directory of a search, and where its ledger and tracking store are.

    Attributes:
        name: The search's name in the ledger.
        root: The run directory of the spec; of a multi-stage run, the one that all stages share.
        folder: The search's own folder: `root`, or the stage's subfolder of it.
        ledger: Database URL.
        tracking: MLflow tracking URI, or `jsonl:FILE`.
        experiment: MLflow experiment.
    """

    name: str
    root: Path
    folder: Path
    ledger: str
    tracking: str
    experiment: str

    @property
    def export_folder(self) -> Path:
        """The folder of the promoted winner's files."""
        return self.folder / EXPORT_FOLDER

    @property
    def winner_file(self) -> Path:
        """The recipe file of a stage's winner."""
        return self.folder / WINNER_FILE

    @property
    def external_ledger(self) -> str | None:
        """The ledger's URL if it is outside the run directory; SQLite files by their absolute path."""
        url = self.ledger
        if url.startswith(SQLITE):
            url = f"{SQLITE}{os.path.abspath(url.removeprefix(SQLITE))}"
        return None if url == run_dir_at(self.root).ledger else url

    def owns(self, search: str) -> bool:
        """Whether a search in the ledger belongs to this run directory.

        In a shared ledger, `night.v2` may be a stage of `night` or a search of its own. A stage has a subfolder.
        """
        if self.external_ledger is None or search == self.name:
            return True
        stage = search.removeprefix(f"{self.name}.")
        return stage != search and os.path.isdir(self.root / stage)


def run_dir_at(folder: Path) -> RunDir:
    """The run directory at `folder`, with its ledger and tracking store in their default places."""
    tracking = f"{SQLITE}{folder.parent / MLFLOW_FILE}"
    return RunDir(folder.name, folder, folder, f"{SQLITE}{folder / LEDGER_FILE}", tracking, folder.name)


def default_run_dir(name: str) -> RunDir:
    """The run directory of a spec that names neither a ledger nor a tracking store."""
    return run_dir_at(runs_folder() / name)


def configured_run_dir(name: str, stage: str | None, ledger: str | None, tracking: TrackingConfig) -> RunDir:
    """The run directory of a search, or of one stage of a multi-stage run; nothing is created.

    Args:
        name: Name of the spec.
        stage: Name of the stage; None for a spec of one search.
        ledger: Database URL of the spec's `ledger`.
        tracking: The spec's `tracking`.
    """
    own = default_run_dir(name)
    return RunDir(
        name=f"{name}.{stage}" if stage else name,
        root=own.root,
        folder=own.root / stage if stage else own.root,
        ledger=ledger or own.ledger,
        tracking=tracking.uri or own.tracking,
        experiment=tracking.experiment or name,
    )


def record_ledger(run_dir: RunDir) -> None:
    """Write the URL of an external ledger into the run directory of a search that starts.

    A ledger in the run directory itself is not recorded, so that the folder can be moved.

    Raises:
        LedgerError: The folder cannot be written, or its ledger.url is a file of another kind.
        SpecError: The ledger's URL contains a password.
    """
    url = run_dir.external_ledger
    for folder in dict.fromkeys((run_dir.root, run_dir.folder)):
        _refuse_foreign(folder / LEDGER_URL_FILE)
        try:
            if url is None:
                (folder / LEDGER_URL_FILE).unlink(missing_ok=True)
            else:
                _write_line(folder / LEDGER_URL_FILE, without_credentials(url))
        except OSError as exc:
            what = f"cannot write {folder / LEDGER_URL_FILE}: {exc.strerror}"
            raise LedgerError("EVOSEARCH_RUNS", what, next="Choose a folder you may write to") from None


def _refuse_foreign(file: Path) -> None:
    """Refuse to replace or remove a file that is not the URL of a ledger."""
    try:
        with file.open("rb") as opened:
            content = opened.read(LONGEST_URL + 1)
    except OSError:  # missing, or an error of the write that follows
        return
    if len(content) > LONGEST_URL or b"\0" in content or b"://" not in content:
        what = f"{file} is not a file with the URL of a ledger, and is not replaced"
        raise LedgerError("EVOSEARCH_RUNS", what, next="Move it to another place")


def _write_line(file: Path, text: str) -> None:
    """Write a file atomically: others may read it at any time."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_text(f"{text}\n", encoding="utf-8")
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
