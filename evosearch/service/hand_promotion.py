"""Promotions by hand: back to an earlier version, or against the gate with a reason that stays visible."""

from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from evosearch.errors import InputError, LedgerError
from evosearch.reporting.export import export
from evosearch.search.ledger.ledger import Ledger
from evosearch.search.progress import Watcher
from evosearch.search.state import SearchState
from evosearch.service.register import texts_of
from evosearch.setup.loading import read_search
from evosearch.setup.trackers import registry_of
from evosearch.spec.lookup import find
from evosearch.spec.run_dir import RunDir
from evosearch.tracking.model_registry import Registry
from evosearch.tracking.recipe_tags import RECIPE_FILE

AGAIN = "made the champion again by evosearch promote --to"  # reason of a promotion without one


@dataclass(frozen=True)
class HandPromotion:
    """A promotion by hand.

    Attributes:
        registered_as: The registered model.
        version: The version that is its champion now.
        before: The version that was its champion; None without one.
        candidate: The candidate of a forced promotion; None for a return to a version.
        reason: Why.
    """

    registered_as: str
    version: str
    before: str | None
    candidate: str | None
    reason: str


def promote_version(search: str, version: str, reason: str | None, name: str | None) -> HandPromotion:
    """Make an earlier version of a search's registered model the champion again.

    Args:
        search: Name, run directory or spec of the search.
        version: Number of the version.
        reason: Why; kept as a tag of the version.
        name: Name of the registered model; the one of the search's promotion by default.

    Raises:
        InputError: The search has no registry, or it has no such model or version.
    """
    run_dir = find(search)
    with Ledger.open(run_dir.ledger, read_only=True) as ledger:
        _, state = read_search(ledger, run_dir)
    model, registry, why = _model(state, name), _registry(run_dir), reason or AGAIN
    before = registry.promote(model, version, why)
    return HandPromotion(model, version, before, None, why)


def force_promotion(
    search: str, candidate: str | None, reason: str, name: str | None, watcher: Watcher
) -> HandPromotion:
    """Register a candidate that the gate did not promote, and make it the champion.

    Ledger and decision of the gate stay as they are; the version says that it was forced, and why.

    Args:
        search: Name, run directory or spec of the search.
        candidate: Candidate or baseline; by default the one that the gate judged last.
        reason: Why; in the description and tags of the version.
        name: Name of the registered model; the one of the search's promotion by default.
        watcher: Shows progress.

    Raises:
        InputError: The search has no registry, no such candidate, or no decision.
    """
    run_dir = find(search)
    registry = _registry(run_dir)
    with (
        Ledger.open(run_dir.ledger, read_only=True) as ledger,
        TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        search_id, state = read_search(ledger, run_dir)
        model, wanted = _model(state, name), candidate or (state.gated.winner if state.gated else None)
        if wanted is None:
            what = "the gate has not decided yet, and no candidate is given"
            raise LedgerError(run_dir.name, what, "A candidate listed by `evosearch leaderboard`, with --candidate")
        exported = export(search, "recipe", Path(folder) / RECIPE_FILE, wanted, False, watcher)
        decision = state.gated.decision["reasons"] if state.gated else ()
        found = registry.champion(model)
        version = registry.register(
            model,
            search_id=search_id,
            candidate=state.original(exported.candidate),
            recipe_id=exported.recipe_id,
            artifact_dir=Path(folder),
            texts=texts_of(ledger, search_id, state, state.original(exported.candidate), decision, {}, reason),
        )
    return HandPromotion(model, version, found.version if found else None, exported.candidate, reason)


def _model(state: SearchState, name: str | None) -> str:
    registered = state.promoted.registered_as if state.promoted else None
    found = name or registered or state.spec.get("promotion", {}).get("register_as")
    if not found:
        what = "the search has registered no model"
        raise InputError(state.name, what, "The name of a registered model", "Give it with --as NAME")
    return str(found)


def _registry(run_dir: RunDir) -> Registry:
    registry = registry_of(run_dir)
    if registry is None:
        what = f"{run_dir.tracking} is a file of JSON lines, which has no model registry"
        raise InputError(f"{run_dir.name}: tracking.uri", what, "An MLflow tracking.uri")
    return registry
