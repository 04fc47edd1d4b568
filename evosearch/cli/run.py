"""`evosearch run SPEC`: search, promote, export; continues by itself what was begun."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from evosearch.cli.console import ALLOW_PICKLE, CONTINUE_FROM_BEST, JSON, ProgressAs, console, note, print_json, watcher
from evosearch.errors import EvosearchError, InputError
from evosearch.search.progress import line

if TYPE_CHECKING:
    from evosearch.reporting.report import RunReport

DONE, FAILED, WRONG_INPUT, GATE_SAID_NO, INTERRUPTED = 0, 1, 2, 3, 130  # as `main` exits


def command(
    spec: Path = typer.Argument(help="A search spec (YAML), of one search or of stages."),
    continue_from_best: bool = CONTINUE_FROM_BEST,
    allow_pickle: bool = ALLOW_PICKLE,
    progress: ProgressAs = typer.Option(
        ProgressAs.auto, help="On standard error: a bar or lines for a person, or JSON lines, the result last."
    ),
    json: bool = JSON,
) -> int:
    """Run a search to its promoted, exported winner. The same command continues an interrupted one."""
    from evosearch.cli.tables import show_run
    from evosearch.service.run import run

    watching = watcher(json, progress)
    try:
        report = run(spec, watching, continue_from_best, allow_pickle)
    except (EvosearchError, KeyboardInterrupt) as exc:
        if progress is ProgressAs.json:
            note(line("result", _ended(exc)))
        raise
    finally:
        watching.close()
    if json:
        print_json(report.to_json())
    else:
        show_run(console, report)
    code = DONE if report.promoted else GATE_SAID_NO
    if progress is ProgressAs.json:
        note(line("result", {"exit": code} | _result(report)))
    return code


def _ended(exc: BaseException) -> dict[str, int | str]:
    if isinstance(exc, KeyboardInterrupt):
        return {"exit": INTERRUPTED, "stopped": "interrupted"}
    return {"exit": WRONG_INPUT if isinstance(exc, InputError) else FAILED, "stopped": f"failed: {exc}"}


def _result(report: "RunReport") -> dict[str, object]:
    promoted = report.gate and report.gate["promoted"]
    return {"stopped": report.stopped, "promoted": promoted} | report.candidates
