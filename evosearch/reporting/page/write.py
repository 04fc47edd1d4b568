"""The page of a recorded search, from its ledger to a file."""

import os
import tempfile
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from evosearch.errors import InputError
from evosearch.reporting.page.contents import Section, Text
from evosearch.reporting.page.facts import Facts
from evosearch.reporting.page.render import render
from evosearch.reporting.page.sections import sections
from evosearch.search.ledger.ledger import Ledger
from evosearch.umask import follow_umask

WEIGHTS = "Weights of the models"
NOT_OPENED = Section(
    "weights", WEIGHTS, (Text("Left out: models are only opened on request, by evosearch report NAME --analyze."),)
)
LOSSES = "Loss between the models"
NOT_SCORED = Section(
    "losses", LOSSES, (Text("Left out: merges are only scored on request, by evosearch report NAME --losses."),)
)


def page_of(ledger: Ledger, search_id: str, of_models: Sequence[Section] = (NOT_OPENED, NOT_SCORED)) -> str:
    """Return the page of a search as HTML.

    Args:
        ledger: Its ledger.
        search_id: Its id.
        of_models: The sections on the models' weights and on the losses between them.

    Raises:
        LedgerError: The ledger is damaged, or another version's.
    """
    facts = Facts.read(ledger, search_id)
    now = datetime.fromtimestamp(time.time(), UTC)
    return render(facts.state.name, sections(facts, of_models), f"{now:%Y-%m-%d %H:%M} UTC")


def write_page(page: str, path: Path) -> None:
    """Write a page: completely or not at all.

    Raises:
        InputError: The file cannot be written.
    """
    try:
        if path.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        handle, draft = tempfile.mkstemp(prefix=".report-", suffix=".html", dir=path.parent)
        try:
            with os.fdopen(handle, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(page)
            follow_umask(Path(draft))
            os.replace(draft, path)
        except BaseException:
            Path(draft).unlink(missing_ok=True)
            raise
    except OSError as error:
        what = f"cannot write {path}: {error.strerror}"
        raise InputError("--output", what, next="Choose a file in a folder that exists and can be written") from None
