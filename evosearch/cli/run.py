"""`evosearch run SPEC`: search, promote, export; resumes an interrupted run."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from evosearch.cli.console import (
    ALLOW_PICKLE,
    ALLOW_UNRELATED,
    CONTINUE_FROM_BEST,
    JSON,
    UNVERIFIED,
    ProgressAs,
    console,
    note,
    print_json,
    watcher,
)
from evosearch.errors import EvosearchError, InputError
from evosearch.search.progress import Silent, line

if TYPE_CHECKING:
    from evosearch.reporting.report import RunReport

DONE, FAILED, NOT_PROMOTED, INTERRUPTED = 0, 1, 3, 130  # exit codes, as in `main.py`


def command(
    spec: Path = typer.Argument(help="A search spec (YAML), with one or several stages."),
    continue_from_best: bool = CONTINUE_FROM_BEST,
    allow_pickle: bool = ALLOW_PICKLE,
    unverified: bool = UNVERIFIED,
    allow_unrelated: bool = ALLOW_UNRELATED,
    progress: ProgressAs = typer.Option(
        ProgressAs.auto,
        help="Progress on standard error. auto: a bar or text lines; json: JSON lines, result last.",
    ),
    json: bool = JSON,
) -> int:
    """Run a search, promote its winner and export it. The same command resumes an interrupted run."""
    from evosearch.cli.run_report import show_run
    from evosearch.service.run import run

    with closing(watcher(json, progress)) as watching:
        try:
            report = run(spec, watching, continue_from_best, allow_pickle, unverified, allow_unrelated)
        except (EvosearchError, KeyboardInterrupt) as exc:
            for text in getattr(exc, "__notes__", ()) if isinstance(watching, Silent) else ():  # others have shown it
                note(text)
            if progress is ProgressAs.json:
                note(line("result", _ended(exc)))
            raise
    if json:
        print_json(report)
    else:
        show_run(console, report)
    code = DONE if report.promoted else NOT_PROMOTED
    if progress is ProgressAs.json:
        note(line("result", {"exit": code} | _result(report)))
    return code


def _ended(exc: BaseException) -> dict[str, int | str]:
    if isinstance(exc, KeyboardInterrupt):
        return {"exit": INTERRUPTED, "stopped": "interrupted"}
    return {"exit": exc.exit_code if isinstance(exc, InputError) else FAILED, "stopped": f"failed: {exc}"}


def _result(report: "RunReport") -> dict[str, object]:
    promoted = report.gate.promoted if report.gate else None
    return {"stopped": report.stopped, "promoted": promoted} | vars(report.candidates)
