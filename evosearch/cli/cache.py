"""`evosearch cache`: list the cache of this machine, and remove what was not used for longest."""

from typing import TYPE_CHECKING

import typer

from evosearch.cli.console import JSON, console, print_json
from evosearch.durations import clock

if TYPE_CHECKING:
    from evosearch.checkpoints.cache.inventory import Entry, Inventory, Pruned

SHOWN = 48  # characters of a model's name


def command(
    prune: bool = typer.Option(
        False, "--prune", help="Remove drafts of killed processes, and down to --max-size the entries used first."
    ),
    max_size: str | None = typer.Option(
        None,
        metavar="SIZE",
        help="With --prune: space that may remain taken, such as 200GB; 0 removes all that no process uses. Default: "
        "$EVOSEARCH_CACHE_MAX, or no limit.",
    ),
    json: bool = JSON,
) -> None:
    """List the cache: copies, applied adapters, merged recipes, tokenizers, teachers' answers, built-in models."""
    from evosearch.checkpoints.cache import inventory
    from evosearch.checkpoints.disk_space import parse_size
    from evosearch.checkpoints.references import default_cache
    from evosearch.errors import InputError

    if max_size is not None and not prune:
        raise InputError("--max-size", "given without --prune", next="Add --prune, which removes entries")
    limit = parse_size(max_size, "--max-size") if max_size is not None else inventory.cache_ceiling()
    if not prune:
        found = inventory.inventory(default_cache())
        print_json(_document(found)) if json else _show(found, limit)
        return
    pruned = inventory.prune(default_cache(), limit)
    print_json(_pruned_document(pruned)) if json else _show_pruned(pruned, limit)


def _show(found: "Inventory", limit: int | None) -> None:

    from evosearch.checkpoints.cache.layout import KINDS
    from evosearch.checkpoints.disk_space import size
    from evosearch.cli.tables import make_table
    from evosearch.reporting.columns import Column

    columns = [
        Column["Entry"]("what", lambda entry: _short(entry.what or entry.name[:12] or "-"), left=True),
        Column("kind", lambda entry: KINDS[entry.kind], left=True),
        Column("size", lambda entry: size(entry.bytes)),
        Column("files", lambda entry: str(entry.files)),
        Column("last used", _last_used, left=True),
    ]
    console.print(make_table(f"Cache {found.cache}", columns, found.entries))
    ceiling = f" of {size(limit)}" if limit is not None else ""
    lines = [f"{len(found.entries)} entries, {size(found.bytes)}{ceiling}"]
    if found.drafts:
        lines.append(f"{found.drafts} drafts of killed processes, {size(found.draft_bytes)}: evosearch cache --prune")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _show_pruned(pruned: "Pruned", limit: int | None) -> None:
    from evosearch.checkpoints.disk_space import size

    lines = [f"removed {entry.kind}/{entry.name[:12]} {entry.what} ({size(entry.bytes)})" for entry in pruned.removed]
    lines.append(
        f"{len(pruned.removed)} entries and {pruned.drafts} drafts removed, {size(pruned.bytes)} freed, "
        f"{size(pruned.left.bytes)} left"
    )
    if limit is None:
        lines.append("No entries were considered: give --max-size, or set EVOSEARCH_CACHE_MAX.")
    elif pruned.left.bytes > limit:
        lines.append(f"More than {size(limit)} is left, because running processes use it.")
    console.print("\n".join(lines), markup=False, highlight=False, soft_wrap=True)


def _document(found: "Inventory") -> dict[str, object]:
    return {"cache": found.cache, "bytes": found.bytes, "entries": found.entries} | {
        "drafts": found.drafts,
        "draft_bytes": found.draft_bytes,
    }


def _pruned_document(pruned: "Pruned") -> dict[str, object]:
    return {"removed": pruned.removed, "drafts": pruned.drafts, "bytes": pruned.bytes, "left": _document(pruned.left)}


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"…{text[1 - SHOWN :]}"  # the end of a path says more than its start


def _last_used(entry: "Entry") -> str:
    return "in use" if entry.in_use else clock(entry.last_used_s)
