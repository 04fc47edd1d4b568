"""Registry of the names that evosearch, SQLite and MLflow write in a runs folder and in the folder of a search.

Specs name searches, stages, ledgers and tracking files. None of them may have one of these names, in any case, because
some file systems ignore it: the file or folder would be replaced, or block what is written there. A new file in either
folder needs an entry, which a test compares with the files of real runs.
"""

from pathlib import Path

from evosearch.errors import SpecError
from evosearch.tracking.client import ARTIFACTS

LEDGER_FILE = "ledger.db"
LEDGER_URL_FILE = "ledger.url"
WINNER_FILE = "winner.yaml"
EXPORT_FOLDER = "export"
REPORT_FILE = "report.html"
MLFLOW_FILE = "mlflow.db"
CLUSTER_FOLDER = "cluster"

OWN_NAMES = {
    LEDGER_FILE: "the ledger of a search",
    LEDGER_URL_FILE: "the file with the URL of an external ledger",
    WINNER_FILE: "the recipe of a stage's winner",
    EXPORT_FOLDER: "the folder of exported files",
    REPORT_FILE: "the report of a search",
    MLFLOW_FILE: "MLflow's database",
    ARTIFACTS: "MLflow's artifacts",
    CLUSTER_FOLDER: "the folder of `evosearch cluster`",
}
SIDE_FILES = ("-wal", "-shm", "-journal")  # suffixes of SQLite's files next to a database
LOCK = ".lock"  # suffix of lock files, next to a ledger
DAMAGED = ".damaged"  # suffix of a damaged ledger's files after a recovery


def use_of(name: str) -> str | None:
    """Return what evosearch uses a file or folder name for; None if it is free."""
    folded = name.casefold()
    if folded.startswith("."):
        return "drafts"  # written first and then renamed
    if folded.endswith(LOCK):
        return "a lock"
    if folded.endswith(DAMAGED):
        return "a damaged ledger"
    if folded.endswith(SIDE_FILES):
        return "SQLite's side files"
    return OWN_NAMES.get(folded)


def free_name(name: str) -> str:
    """Return the name of a search or a stage if it is free.

    Raises:
        SpecError: It is one of ours.
    """
    return _checked(name, name)


def free_file(url: str, file: Path, allowed: str, runs: Path) -> str:
    """Return the URL of a database in a spec if its file is free.

    Args:
        url: The URL.
        file: Its file.
        allowed: The own name that it may have: `ledger.db` for a ledger, `mlflow.db` for MLflow.
        runs: The runs folder; in it, folders are checked too.

    Raises:
        SpecError: The file, or a folder that it is in, is one of ours.
    """
    real = file.resolve()  # of a link
    for name in {file.name, real.name} - {allowed}:
        _checked(name, url)
    if real.is_relative_to(runs):
        for folder in real.relative_to(runs).parts[:-1]:
            if folder.casefold() != CLUSTER_FOLDER:  # which contains a runs folder
                _checked(folder, url)
    return url


def _checked(name: str, given: str) -> str:
    use = use_of(name)
    if use is not None:
        raise SpecError("", f"got '{given}', and the name '{name}' is taken by {use}", next="Choose another name")
    return given
