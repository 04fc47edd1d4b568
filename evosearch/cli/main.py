"""The `evosearch` program: its commands, and the conversion of errors to a message and an exit code.

0 done · 1 failed, also by a full disk or a locked ledger · 2 bad input · 3 not promoted by the gate
130 interrupted, can be resumed
"""

import os
import signal
import sys
import traceback
from typing import Any

import typer

from evosearch import __version__
from evosearch.cli import (
    analyze,
    cache,
    check,
    cluster,
    diff,
    export,
    import_spec,
    init,
    leaderboard,
    ledger,
    logs,
    merge,
    promote,
    push,
    report_page,
    run,
    score,
    status,
    stop,
    submit,
    ui,
    verify,
    watch,
)
from evosearch.cli.console import json_wanted, print_error, print_json
from evosearch.environment import telemetry_off
from evosearch.errors import EvosearchError, InputError
from evosearch.umask import set_umask
from evosearch.visible import visible

FAILED, INTERRUPTED = 1, 130

app = typer.Typer(
    name="evosearch",
    help="Search for merge recipes of language models, by evolution or by gradients.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
)
for command in (
    init,
    check,
    run,
    submit,
    status,
    watch,
    logs,
    stop,
    leaderboard,
    merge,
    diff,
    analyze,
    score,
    export,
    promote,
    verify,
    push,
    ui,
    cache,
):
    app.command(name=command.__name__.rsplit(".", 1)[-1])(command.command)
app.command(name="report")(report_page.command)
app.command(name="import")(import_spec.command)
app.add_typer(ledger.app, name="ledger")
app.add_typer(cluster.app, name="cluster")


@app.callback(invoke_without_command=True)
def _before(
    context: typer.Context, version: bool = typer.Option(False, "--version", help="Print the version.")
) -> None:
    if version:
        sys.stdout.write(f"evosearch {__version__}\n")
        raise typer.Exit
    if context.invoked_subcommand != "cluster":  # whose PostgreSQL may be run by another user, in folders that it makes
        set_umask()


def main() -> None:
    """Entry point of the `evosearch` program."""
    telemetry_off()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    signal.signal(signal.SIGTERM, _interrupt)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, _interrupt)
    try:
        code = app(standalone_mode=False)
    except InputError as exc:
        _report(exc, exc.to_dict())
        sys.exit(exc.exit_code)
    except EvosearchError as exc:
        _report(exc, {"what": str(exc)})
        sys.exit(FAILED)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except Exception as exc:
        sys.exit(_usage_or_bug(exc))
    if code == INTERRUPTED:  # typer also returns it for an interrupt inside a command
        print_error("Interrupted. Run the same command to resume.")
    sys.exit(code if isinstance(code, int) else 0)


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def _report(exc: Exception, error: dict[str, Any]) -> None:
    print_error(str(exc))
    if json_wanted():
        print_json({"ok": False, "error": error})


def _usage_or_bug(exc: Exception) -> int:
    """Print a usage error, or the traceback of any other exception, which is a bug; return the exit code."""
    show, code = getattr(exc, "show", None), getattr(exc, "exit_code", None)
    if callable(show) and isinstance(code, int):
        show()
        return code
    sys.stderr.write(visible("".join(traceback.format_exception(exc))))
    _report(exc, {"what": f"{type(exc).__name__}: {exc}"})
    return FAILED


if __name__ == "__main__":
    main()
