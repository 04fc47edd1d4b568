"""From the spec's `tracking` to a mirror of the ledger and a registry."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from evosearch.credentials import hidden
from evosearch.errors import SpecError
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Watcher
from evosearch.spec.run_dir import Places
from evosearch.spec.spec import SearchSpec
from evosearch.tracking.jsonl import JsonLinesTracker
from evosearch.tracking.mirror import Mirror
from evosearch.tracking.mlflow import MlflowMirror
from evosearch.tracking.registry import Registry

CATCH_UP_S = 120.0  # how long the end of a run waits for the mirror
PATIENCE_S = 10.0  # how long it waits for a store that fails
INTERRUPTED_S = 5.0  # how long one that was told to stop waits for either: it is killed if it takes its time
JSON_LINES = "jsonl:"  # `jsonl:events.jsonl`: a file in the search's folder instead of an MLflow store


@contextmanager
def mirroring(places: Places, search_id: str, watcher: Watcher) -> Iterator[Mirror]:
    """The mirror of one search; at the end it has some time to catch up, and what it misses the next run brings."""

    def notice(text: str) -> None:
        watcher.note(f"{shown(places)}: {text}")

    reader = partial(Ledger.open, places.ledger, read_only=True)
    mirror: Mirror
    if places.tracking.startswith(JSON_LINES):
        mirror = JsonLinesTracker(jsonl_file(places), reader, search_id, notice)
    else:
        mirror = MlflowMirror(places.tracking, places.experiment, reader, search_id, places.name, notice)
    catch_up_s = CATCH_UP_S
    try:
        yield mirror
    except KeyboardInterrupt:
        catch_up_s = INTERRUPTED_S
        raise
    finally:
        mirror.close(catch_up_s, min(catch_up_s, PATIENCE_S))


def jsonl_file(places: Places) -> Path:
    return places.folder / places.tracking.removeprefix(JSON_LINES)


def shown(places: Places) -> str:
    """The tracking store as messages name it: `MLflow at http://host:5000`."""
    if places.tracking.startswith(JSON_LINES):
        return str(jsonl_file(places))
    return f"MLflow at {hidden(places.tracking)}"


def registry_of(places: Places) -> Registry | None:
    """The registry of the tracking store; JSON lines have none."""
    return None if places.tracking.startswith(JSON_LINES) else Registry(places.tracking)


def check_tracking(spec: SearchSpec) -> None:
    """`tracking` and `promotion` fit each other.

    Raises:
        SpecError: a name to register under, and nowhere to register.
    """
    uri = spec.config.tracking.uri or ""
    if not uri.startswith(JSON_LINES):
        return
    file = Path(uri.removeprefix(JSON_LINES))
    if not file.name or file.is_absolute() or ".." in file.parts:
        raise SpecError(f"{spec.file}: tracking.uri", f"got '{uri}'", "jsonl:FILE, a file in the search's own folder")
    if spec.config.promotion.register_as:
        where = f"{spec.file}: promotion.register_as"
        raise SpecError(where, "JSON lines have no model registry", "An MLflow tracking.uri", "Remove one of the two")
