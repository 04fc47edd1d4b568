"""`evosearch report`: the report of a search as one HTML page, and its copy in MLflow at the end of a run."""

from dataclasses import dataclass
from pathlib import Path

from evosearch.errors import EvosearchError
from evosearch.reporting.page.write import NOT_OPENED, NOT_SCORED, page_of, write_page
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Watcher
from evosearch.setup.loading import read_search
from evosearch.setup.trackers import JSON_LINES, shown
from evosearch.spec.lookup import find
from evosearch.spec.own_names import REPORT_FILE
from evosearch.spec.run_dir import RunDir
from evosearch.tracking.report_file import log_report


@dataclass(frozen=True)
class PageResult:
    """A written report.

    Attributes:
        search: Name of the search.
        search_id: Its id.
        out: The file.
        bytes: Its size.
    """

    search: str
    search_id: str
    out: str
    bytes: int


def write_report(
    search: str,
    out: Path | None,
    watcher: Watcher,
    analyze: bool = False,
    losses: bool = False,
    allow_pickle: bool = False,
) -> PageResult:
    """Write the report of a recorded search, which may still run.

    Args:
        search: Name, run directory or spec of the search.
        out: File to write; by default report.html in the search's folder.
        watcher: Shows progress and notes.
        analyze: Also open the models, and compare their weights.
        losses: Also score merges on the lines between them.
        allow_pickle: Read pickled weights of models without safetensors.

    Raises:
        LedgerError: There is no such search.
        InputError: The file cannot be written, or a model cannot be opened or has changed.
    """
    run_dir = find(search)
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        search_id, _ = read_search(ledger, run_dir)
        weights, lines = NOT_OPENED, NOT_SCORED
        if analyze:
            from evosearch.service.report_weights import weights_section

            weights = weights_section(ledger, search_id, watcher, allow_pickle)
        if losses:
            from evosearch.service.report_losses import losses_section

            lines = losses_section(ledger, search_id, watcher, allow_pickle)
        page = page_of(ledger, search_id, (weights, lines))
    path = run_dir.folder / REPORT_FILE if out is None else out
    write_page(page, path)
    return PageResult(run_dir.name, search_id, str(path), path.stat().st_size)


def log_page(run_dir: RunDir, ledger: Ledger, search_id: str, watcher: Watcher) -> None:
    """Log the report as artifact of the search's run in MLflow; a failure is a note, since the search is complete."""
    if run_dir.tracking.startswith(JSON_LINES):
        return
    try:
        log_report(run_dir.tracking, search_id, page_of(ledger, search_id))
    except Exception as exc:  # whatever it is, it must not change the outcome of a search that has ended
        what = str(exc) if isinstance(exc, EvosearchError) else f"{type(exc).__name__}: {exc}"
        watcher.note(f"{shown(run_dir)}: the report was not logged, and `evosearch report` can write it: {what}")
