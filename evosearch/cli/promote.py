"""`evosearch promote NAME`: a registered champion by hand, back to a version or against the gate."""

import typer

from evosearch.cli.console import JSON, console, print_json, watcher
from evosearch.errors import InputError


def command(
    search: str = typer.Argument(help="A search: its name (`name.stage` for a stage), run directory or spec."),
    to: str | None = typer.Option(
        None, "--to", help="Version of the registered model that becomes the champion again."
    ),
    force: bool = typer.Option(
        False, "--force", help="Register and promote a candidate that the gate did not promote."
    ),
    reason: str | None = typer.Option(None, help="Why; stays visible at the version. Required with --force."),
    candidate: str | None = typer.Option(None, help="With --force: the candidate; by default the gate's winner."),
    registered: str | None = typer.Option(None, "--as", help="Registered model; by default the search's own."),
    json: bool = JSON,
) -> None:
    """Make an earlier version the champion again, or promote a candidate against the gate."""
    from evosearch.service.hand_promotion import force_promotion, promote_version

    _check(to, force, reason, candidate)
    if to is not None:
        result = promote_version(search, to, reason, registered)
    else:
        watching = watcher(json)
        try:
            result = force_promotion(search, candidate, str(reason), registered, watching)
        finally:
            watching.close()
    if json:
        print_json(result)
        return
    before = f"; it was version {result.before}" if result.before not in (None, result.version) else ""
    console.print(f"version {result.version} is the champion of '{result.registered_as}'{before}", highlight=False)


def _check(to: str | None, force: bool, reason: str | None, candidate: str | None) -> None:
    """Check the combination of options.

    Raises:
        InputError: It is not one of the two promotions.
    """
    if (to is None) == (not force):
        given = "both --to and --force" if force else "neither --to nor --force"
        raise InputError("promote", f"got {given}", "One of them", "--to VERSION returns to a version")
    if force and not (reason or "").strip():
        raise InputError("--force", "got no reason", "--reason TEXT", "Say why the gate is overruled")
    if candidate is not None and not force:
        raise InputError("--candidate", "given without --force", "A version, with --to alone")
