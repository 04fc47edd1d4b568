"""`evosearch verify RECIPE`: compare an exported recipe with what this machine rebuilds."""

from pathlib import Path

import typer

from evosearch.cli.console import ALLOW_PICKLE, JSON, console, print_json, watcher

DIFFERS = 1
MOST_SHOWN = 20


def command(
    recipe: Path = typer.Argument(help="A recipe that `evosearch export` wrote."),
    scores: bool = typer.Option(False, "--scores", help="Score the merge again and compare every item."),
    suite: Path | None = typer.Option(None, help="The suite's file; by default the one that the recipe names."),
    key: Path | None = typer.Option(None, help="Public key (PEM) that must have signed the recipe's attestation."),
    allow_pickle: bool = ALLOW_PICKLE,
    json: bool = JSON,
) -> None:
    """Rebuild an exported recipe and compare models, weights and scores with what its file records.

    Exit code 0: equal; 1: something differs; 2: bad input.
    """
    from evosearch.service.verify import verify

    watching = watcher(json)
    try:
        report = verify(recipe, watching, scores, suite, allow_pickle, key)
    finally:
        watching.close()
    if json:
        print_json(report)
    else:
        for one in report.differences[:MOST_SHOWN]:
            console.print(str(one), style="red", highlight=False, soft_wrap=True)
        if len(report.differences) > MOST_SHOWN:
            console.print(f"and {len(report.differences) - MOST_SHOWN} more: see --json")
        for split, pair in report.scores.items():
            console.print(f"score on {split}: recorded {pair.recorded:.2f}, found {pair.found:.2f}", highlight=False)
        verdict = "equal" if report.equal else f"{len(report.differences)} difference(s)"
        console.print(f"{report.recipe}: {verdict}; compared: {', '.join(report.compared)}", highlight=False)
    if not report.equal:
        raise typer.Exit(DIFFERS)
